"""A model with what belongs to it, as bytes: versioned, with a checksum.

Whatever the bytes are, `restored` returns what was saved or raises; it never crashes on them. A
change of the features is a new version: whoever has the other one leaves the bytes alone.
"""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import dataclass
from typing import Any

from cachefs.policy.evict.ml.memory import FEATURES
from cachefs.policy.evict.ml.models import MOST_STATE_BYTES, Model, checked, load

_MAGIC = b"cachefsM"
_VERSION = 1
_HEAD = struct.Struct("<8sIII")
"""Magic, version, length of the description, and a CRC-32 of all that follows."""
_MOST_DESCRIPTION_BYTES = 4096
_MOST_TRAININGS = 10**6
"""Once a minute, for two years."""
MOST_BYTES = _HEAD.size + _MOST_DESCRIPTION_BYTES + MOST_STATE_BYTES
"""What is longer is no model."""

OWN, IMPORTED, STORE = "own", "imported", "store"
"""Where a model comes from: trained here, a file that somebody brought, what hosts share."""


class NewerError(ValueError):
    """These bytes are of a version that this cachefs does not know yet."""


@dataclass(frozen=True, slots=True)
class Saved:
    """What a restart takes over of what was learned."""

    model: Model
    boundary: float
    """How long chunks lived unused, in uses: labels mean nothing without it."""
    ruler: str
    trainings: int
    origin: str = OWN


def saved(what: Saved) -> bytes:
    """Return the bytes of a model."""
    description = json.dumps(
        {
            "model": what.model.name,
            "features": FEATURES,
            "boundary": what.boundary,
            "ruler": what.ruler,
            "trainings": what.trainings,
            "origin": what.origin,
        }
    ).encode()
    rest = description + what.model.state()
    return _HEAD.pack(_MAGIC, _VERSION, len(description), zlib.crc32(rest)) + rest


def restored(data: bytes) -> Saved:
    """Return what was saved.

    Raises:
        ValueError: these are other bytes, or a model for other features or of another version.
        ImportError, OSError: it is sound, and what it needs is not installed.
    """
    found, state = _parts(data)
    try:
        return Saved(
            load(found["model"], state),
            float(found["boundary"]),
            str(found["ruler"]),
            _trainings(found),
            str(found.get("origin", OWN)),
        )
    except _BROKEN as error:
        raise ValueError(f"it is broken: {error!r}") from error


def trainings_of(data: bytes) -> int:
    """Return how often a saved model was trained; all of it is checked, nothing is loaded.

    Raises:
        NewerError: it is of a newer version.
        ValueError: these are other bytes, or a model for other features or of an older version.
    """
    found, state = _parts(data)
    try:
        checked(found["model"], state)
        return _trainings(found)
    except _BROKEN as error:
        raise ValueError(f"it is broken: {error!r}") from error


_BROKEN = (LookupError, TypeError, OverflowError, RecursionError)


def _parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the description and the model's state."""
    if len(data) < _HEAD.size or not data.startswith(_MAGIC):
        raise ValueError("this is no model of cachefs")
    _, version, length, check = _HEAD.unpack_from(data)
    if version != _VERSION:
        error = NewerError if version > _VERSION else ValueError
        raise error(f"it has version {version}, this cachefs knows {_VERSION}")
    rest = data[_HEAD.size :]
    if len(data) > MOST_BYTES or length > _MOST_DESCRIPTION_BYTES:
        raise ValueError("it is larger than any")
    if zlib.crc32(rest) != check:
        raise ValueError("it is damaged")
    try:
        found = json.loads(rest[:length])
        if tuple(found["features"]) != FEATURES:
            raise ValueError("it is for other features")
    except _BROKEN as error:
        raise ValueError(f"it is broken: {error!r}") from error
    return found, rest[length:]


def _trainings(found: dict[str, Any]) -> int:
    trainings = int(found["trainings"])
    if not 0 <= trainings <= _MOST_TRAININGS:
        raise ValueError(f"it has {trainings} trainings")
    return trainings
