"""A profile: what the arms know of an image, by content, as a value and as bytes.

The bytes are versioned, checksummed, compressed and bounded. Whatever they are, reading them ends
with a profile or with an error of ours. A profile may be deleted at any time: it costs warmth.

    magic "cachefsP", version u32, length of the description u32, length of the rest when unpacked
    u64, BLAKE3-128 of all that follows; then the description in JSON (image, chunk size, host,
    time, rows of each section), then the rows of all sections, in that order, compressed by zstd

Two hosts that have learned apart share what they know by `merge`: counts are added, within bounds.
Version 2 knows which starts touched a chunk, version 1 (not read any more) how many.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import zstandard
from blake3 import blake3

from cachefs.errors import CorruptError, FormatError
from cachefs.policy.prefetch.learner import MOST_ROWS, SECTIONS, Rows
from cachefs.policy.prefetch.starts import folded, merged, sound

MAGIC = b"cachefsP"
VERSION = 2
MOST_BYTES = 32 * 2**20
"""Of a profile at rest. All sections full take less: keys do not compress, counts do."""
_HEAD = struct.Struct("<8sIIQ16s")
_MOST_DESCRIPTION_BYTES = 64 * 1024
_MOST_TEXT = 1_024
_MOST_COUNT = 1e6


@dataclass(frozen=True, slots=True)
class Profile:
    """What is known of one image."""

    image: str
    """Its name when this was learned: for people; what holds is by content."""
    chunk_bytes: int
    sections: dict[str, Rows] = field(default_factory=dict)
    """By the name of the arm; see SECTIONS."""
    saved_s: float = 0.0
    """Unix time."""
    is_whole: bool = True
    """Of a single run: whether its working set had stopped growing when it was saved."""

    @property
    def working_set_bytes(self) -> int:
        """How much the replay knows of."""
        rows = self.sections.get("replay")
        return 0 if rows is None else len(rows) * self.chunk_bytes


def to_bytes(profile: Profile) -> bytes:
    """Return a profile as bytes, at most MOST_BYTES."""
    sections = {
        name: np.ascontiguousarray(rows[:MOST_ROWS].astype(SECTIONS[name]))
        for name, rows in profile.sections.items()
        if name in SECTIONS
    }
    description = json.dumps(
        {
            "image": profile.image[:_MOST_TEXT],
            "chunk_bytes": profile.chunk_bytes,
            "saved_s": profile.saved_s,
            "is_whole": profile.is_whole,
            "sections": {name: len(rows) for name, rows in sections.items()},
        }
    ).encode()
    plain = b"".join(rows.tobytes() for rows in sections.values())
    rest = description + zstandard.ZstdCompressor(level=3).compress(plain)
    check = blake3(rest).digest(16)
    return _HEAD.pack(MAGIC, VERSION, len(description), len(plain), check) + rest


def from_bytes(data: bytes) -> Profile:
    """Return the profile that bytes are.

    Raises:
        FormatError: they are none, or of another version.
        CorruptError: they are damaged.
    """
    if len(data) < _HEAD.size or not data.startswith(MAGIC):
        raise FormatError("this is no profile of cachefs")
    _, version, described, plain_bytes, check = _HEAD.unpack_from(data)
    if version != VERSION:
        raise FormatError(f"the profile has version {version}, this cachefs knows {VERSION}")
    if len(data) > MOST_BYTES or described > _MOST_DESCRIPTION_BYTES:
        raise FormatError(f"the profile is larger than {MOST_BYTES} bytes")
    rest = data[_HEAD.size :]
    if blake3(rest).digest(16) != check:
        raise CorruptError("the profile is damaged: delete it, it will be learned anew")
    try:
        return _profile_of(json.loads(rest[:described]), rest[described:], plain_bytes)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(f"the profile makes no sense: {error}") from error
    except zstandard.ZstdError as error:
        raise CorruptError(f"the profile cannot be unpacked: {error}") from error


def _profile_of(description: dict[str, Any], packed: bytes, plain_bytes: int) -> Profile:
    counts = {str(name): int(rows) for name, rows in description["sections"].items()}
    if any(not 0 <= rows <= MOST_ROWS or name not in SECTIONS for name, rows in counts.items()):
        raise ValueError("sections that it cannot have")
    wanted = sum(SECTIONS[name].itemsize * rows for name, rows in counts.items())
    if wanted != plain_bytes:
        raise ValueError("its sections have another size than it says")
    plain = b""
    if plain_bytes:  # the bound is known, so that a small file cannot fill the memory
        unpacker = zstandard.ZstdDecompressor().stream_reader(packed)
        plain = unpacker.read(plain_bytes)
    if len(plain) != plain_bytes:
        raise ValueError("it ends too early")
    sections, at = {}, 0
    for name, rows in counts.items():
        sections[name] = _checked(np.frombuffer(plain, SECTIONS[name], rows, at))
        at += rows * SECTIONS[name].itemsize
    chunk_bytes = int(description["chunk_bytes"])
    if not 0 < chunk_bytes <= 2**30:
        raise ValueError(f"chunks of {chunk_bytes} bytes")
    image = str(description["image"])[:_MOST_TEXT]
    saved_s, is_whole = float(description["saved_s"]), bool(description["is_whole"])
    return Profile(image, chunk_bytes, sections, saved_s, is_whole)


def _checked(rows: Rows) -> Rows:
    for name in rows.dtype.names or ():
        values = rows[name]
        if values.dtype.kind == "f" and not (
            np.isfinite(values).all() and (values >= 0).all() and (values <= _MOST_COUNT).all()
        ):
            raise ValueError("counts that are none")
    return rows


def merge(mine: Profile, theirs: Profile) -> Profile:
    """Return what two profiles know together.

    Chunks of other sizes have other contents: profiles of two chunk sizes do not meet, and mine is
    returned. A key that both know has the sum of the counts, and the starts of both.
    """
    if mine.chunk_bytes != theirs.chunk_bytes:
        return mine
    sections = dict(mine.sections)
    for name, rows in theirs.sections.items():
        known = sections.get(name)
        sections[name] = rows if known is None else _MERGES[name](known, rows)
    return Profile(mine.image, mine.chunk_bytes, sections, max(mine.saved_s, theirs.saved_s))


def with_run(known: Profile | None, run: Profile) -> Profile:
    """Return what is known after one more run, whose `replay` is the record of that run alone.

    The other sections of a run were taught what was known, so they take its place.
    """
    if known is None or known.chunk_bytes != run.chunk_bytes:
        return run
    sections = known.sections | run.sections
    if "replay" in known.sections and "replay" in run.sections:
        before, now = sound(known.sections["replay"]), sound(run.sections["replay"])
        sections["replay"] = folded(before, now, is_whole=run.is_whole)
    return Profile(run.image, run.chunk_bytes, sections, run.saved_s)


def _merge_recurrence(mine: Rows, theirs: Rows) -> Rows:
    """The end of a log counts most, and mine more than theirs."""
    return np.concatenate((theirs, mine))[-(MOST_ROWS // 4) :]


def _merge_counts(mine: Rows, theirs: Rows) -> Rows:
    """Rows that name the same chunks become one."""
    both = np.concatenate((mine, theirs))
    names = [name for name in both.dtype.names or () if both.dtype[name] == np.dtype("<u8")]
    _, first, inverse = np.unique(
        np.column_stack([both[name] for name in names]),
        axis=0,
        return_index=True,
        return_inverse=True,
    )
    rows = both[first]
    for name in both.dtype.names or ():
        if name not in names:
            counts = both[name].astype(np.float64)
            rows[name] = np.minimum(np.bincount(inverse.ravel(), counts, len(rows)), _MOST_COUNT)
    return rows[np.argsort(-rows["count"], kind="stable")[:MOST_ROWS]]


_MERGES = {
    "replay": merged,
    "recurrence": _merge_recurrence,
    "markov": _merge_counts,
    "association": _merge_counts,
}
