"""Gathering: the chunks of one job, from the pieces of a plan.

A job is one request to the store as a rule: chunks whose frames lie near each other in a pack, as
those of a run do. From a local store it is a few where pieces are small and scattered.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from cachefs.model.chunk import ChunkRef
from cachefs.policy.prefetch.plan import Plan
from cachefs.prefetch.image import OpenImage
from cachefs.tiers.ranges import MOST_GAP_AHEAD

_MOST_LOOKED_AT = 1024
"""Chunks in one step: about 4 ms of the event loop."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one job: bytes of frames and of chunks, the number of chunks, and of requests.

    A fetcher makes the requests of a job one after the other: where it waits for each, it should
    be one, so that those of other jobs are under way meanwhile.
    """

    frame_bytes: int
    plain_bytes: int
    chunks: int = 4096
    ranges: int = 4

    def within(self, plain_bytes: int, chunks: int) -> Limits:
        """Return the limits where only so many bytes and slots are left."""
        return Limits(
            self.frame_bytes,
            min(self.plain_bytes, plain_bytes),
            min(self.chunks, chunks),
            self.ranges,
        )


class Residents(Protocol):
    """Who knows what is here."""

    def is_needed(self, image: OpenImage, index: int, chunk_id: bytes) -> bool:
        """Whether a chunk is neither here nor under way."""
        ...

    def is_zero(self, image: OpenImage, index: int) -> None:
        """A chunk is all zeros."""
        ...


@dataclass(slots=True)
class Batch:
    """The chunks of one job, by their places in the image."""

    image: OpenImage
    arm: str
    indexes: list[int] = field(default_factory=list)
    refs: list[ChunkRef] = field(default_factory=list)
    frame_bytes: int = 0
    plain_bytes: int = 0
    ranges: int = 0


def gather(
    image: OpenImage, plan: Plan, arm: str, now_s: float, limits: Limits, residents: Residents
) -> Batch:
    """Take the chunks of one job out of a plan; none if nothing of it has to be fetched.

    Raises:
        CachefsError: the image's table is damaged.
    """
    batch = Batch(image, arm)
    ids: set[bytes] = set()
    looked_at = 0
    while looked_at < _MOST_LOOKED_AT and (piece := plan.first(now_s, {arm})):
        taken = 0
        is_full = False
        for index in range(piece.first, piece.first + piece.count):
            ref = image.table.chunk(index)
            if ref.is_zero:
                residents.is_zero(image, index)
            elif ref.id not in ids and residents.is_needed(image, index, ref.id):
                if not _fits(batch, ref, limits):
                    is_full = True
                    break
                _add(batch, index, ref)
                ids.add(ref.id)
            taken += 1
            looked_at += 1
            if looked_at >= _MOST_LOOKED_AT:
                break
        plan.took(piece, taken)
        if is_full:
            break
    return batch


def _fits(batch: Batch, ref: ChunkRef, limits: Limits) -> bool:
    if not batch.refs:
        return True  # the smallest job, whatever the limits
    if (
        batch.frame_bytes + ref.frame_bytes > limits.frame_bytes
        or batch.plain_bytes + ref.plain_bytes > limits.plain_bytes
        or len(batch.refs) >= limits.chunks
    ):
        return False
    if _follows(batch.refs[-1], ref):
        return True
    return batch.ranges < limits.ranges and batch.frame_bytes < limits.frame_bytes // 4


def _add(batch: Batch, index: int, ref: ChunkRef) -> None:
    if not batch.refs or not _follows(batch.refs[-1], ref):
        batch.ranges += 1
    batch.indexes.append(index)
    batch.refs.append(ref)
    batch.frame_bytes += ref.frame_bytes
    batch.plain_bytes += ref.plain_bytes


def _follows(last: ChunkRef, ref: ChunkRef) -> bool:
    return (
        last.pack == ref.pack and abs(ref.offset - last.offset - last.frame_bytes) <= MOST_GAP_AHEAD
    )
