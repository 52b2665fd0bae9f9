"""Onsets: whether the chunk after a read is read soon, before a run is long enough to be believed.

Runs of a few reads are over when they are believed. Where most of them go on, as in scans, the next
chunk is worth a guess after a first read and after a second one; so it is counted for each image
how often that was right. What such guesses may lose is a small share of what is read. Pure.
"""

from __future__ import annotations

from cachefs.units import MIB

_STAGES = 3
"""Reads of a run: 1, 2 (0 is none)."""

_LIKELY = 0.6
_PRIOR_WRONG = 4.0
_MEMORY = 256.0
_MOST_WAITING = 64
"""Next chunks; one that is not read before so many others wait has not been read soon."""

_SHARE = 1 / 250
"""Of the bytes that are read: so much may be guessed wrongly."""
_FLOOR_BYTES = MIB / 8
_MOST_SAVED_BYTES = 4 * MIB


class Onsets:
    """What is known of one image, in chunks of a size."""

    __slots__ = ("_chunk_bytes", "_free_bytes", "_right", "_waiting", "_wrong")

    def __init__(self, chunk_bytes: int) -> None:
        self._chunk_bytes = chunk_bytes
        self._free_bytes = _FLOOR_BYTES
        self._right = [0.0] * _STAGES
        self._wrong = [_PRIOR_WRONG] * _STAGES
        self._waiting: dict[int, tuple[int, int]] = {}
        """Next chunk: the reads that its run had, and the bytes that a guess has staked. Who waits
        longest is the first."""

    def read(self, first: int, count: int, *, is_hit: bool) -> None:
        """Chunks were read. What was here for another reason says nothing: it needs no guess."""
        earned_bytes = self._free_bytes + _SHARE * count * self._chunk_bytes
        self._free_bytes = max(self._free_bytes, min(_MOST_SAVED_BYTES, earned_bytes))
        waiting = self._waiting
        end = first + count
        chunks = range(first, end) if count <= len(waiting) else list(waiting)
        for chunk in chunks:
            if first <= chunk < end and chunk in waiting:
                stage, staked_bytes = waiting.pop(chunk)
                self._free_bytes += staked_bytes
                if staked_bytes or not is_hit:
                    self._count(self._right, stage)

    def guess(self, following: int, reads: int) -> float:
        """Return how likely a run of so few reads goes on with a chunk; 0: nobody should guess."""
        waiting = self._waiting
        if following in waiting:
            return 0.0  # small reads of one chunk: it waits already, and may have a stake
        if len(waiting) >= _MOST_WAITING:
            stage, _ = waiting.pop(next(iter(waiting)))
            self._count(self._wrong, stage)
        right = self._right[reads]
        chance = right / (right + self._wrong[reads])
        is_worth = chance >= _LIKELY and self._free_bytes >= self._chunk_bytes
        staked_bytes = self._chunk_bytes if is_worth else 0
        self._free_bytes -= staked_bytes
        waiting[following] = reads, staked_bytes
        return chance if is_worth else 0.0

    def _count(self, which: list[float], stage: int) -> None:
        which[stage] += 1
        if self._right[stage] + self._wrong[stage] > _MEMORY:
            self._right[stage] /= 2
            self._wrong[stage] = max(_PRIOR_WRONG, self._wrong[stage] / 2)
