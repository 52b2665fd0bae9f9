"""A model with what belongs to it, as bytes: versioned, with a checksum.

Whatever the bytes are, `restored` returns what was saved or raises; it never crashes on them.
"""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import dataclass

from cachefs.policy.evict.ml.memory import FEATURES
from cachefs.policy.evict.ml.models import Model, load

_MAGIC = b"cachefsM"
_VERSION = 1
_HEAD = struct.Struct("<8sIII")
"""Magic, version, length of the description, and a CRC-32 of all that follows."""


@dataclass(frozen=True, slots=True)
class Saved:
    """What a restart takes over of what was learned."""

    model: Model
    boundary: float
    """How long chunks lived unused, in uses: labels mean nothing without it."""
    ruler: str
    trainings: int


def saved(what: Saved) -> bytes:
    """Return the bytes of a model."""
    description = json.dumps(
        {
            "model": what.model.name,
            "features": FEATURES,
            "boundary": what.boundary,
            "ruler": what.ruler,
            "trainings": what.trainings,
        }
    ).encode()
    rest = description + what.model.state()
    return _HEAD.pack(_MAGIC, _VERSION, len(description), zlib.crc32(rest)) + rest


def restored(data: bytes) -> Saved:
    """Return what was saved.

    Raises:
        ValueError: these are other bytes, or a model for other features or of another version.
    """
    if len(data) < _HEAD.size or not data.startswith(_MAGIC):
        raise ValueError("this is no model of cachefs")
    _, version, length, check = _HEAD.unpack_from(data)
    if version != _VERSION:
        raise ValueError(f"it has version {version}, this cachefs knows {_VERSION}")
    rest = data[_HEAD.size :]
    if zlib.crc32(rest) != check:
        raise ValueError("it is damaged")
    found = json.loads(rest[:length])
    if tuple(found["features"]) != FEATURES:
        raise ValueError("it is for other features")
    return Saved(
        load(found["model"], rest[length:]),
        float(found["boundary"]),
        str(found["ruler"]),
        int(found["trainings"]),
    )
