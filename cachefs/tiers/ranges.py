"""Which ranges of packs to ask the store for: neighbouring frames in one request. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from cachefs.units import KIB

MOST_GAP_AHEAD = 32 * KIB
"""Read along by a job ahead: a frame or so. Nobody waits for its requests, but its bytes count."""


class Framed(Protocol):
    """Anything that has a place in a pack."""

    @property
    def pack(self) -> bytes: ...  # noqa: D102
    @property
    def offset(self) -> int: ...  # noqa: D102
    @property
    def frame_bytes(self) -> int: ...  # noqa: D102


@dataclass(slots=True)
class Range:
    """Bytes of a pack to ask for, and which of the frames lie there (indexes into the input)."""

    pack: bytes
    offset: int
    size_bytes: int
    members: list[int]


def plan_ranges(
    frames: Sequence[Framed],
    max_gap_bytes: int,
    max_range_bytes: int,
) -> list[Range]:
    """Return ranges that cover all frames, each frame in exactly one.

    A gap of at most `max_gap_bytes` is read along; request_cost.py says what both should be.
    A range is longer than `max_range_bytes` only if a single frame is.
    """
    ranges: list[Range] = []
    order = sorted(range(len(frames)), key=lambda i: (frames[i].pack, frames[i].offset))
    for index in order:
        frame = frames[index]
        end = frame.offset + frame.frame_bytes
        last = ranges[-1] if ranges else None
        if (
            last is not None
            and last.pack == frame.pack
            and frame.offset - (last.offset + last.size_bytes) <= max_gap_bytes
            and end - last.offset <= max_range_bytes
        ):
            last.size_bytes = max(last.size_bytes, end - last.offset)
            last.members.append(index)
        else:
            ranges.append(Range(frame.pack, frame.offset, frame.frame_bytes, [index]))
    return ranges
