"""Plain readahead, to compare arms with: the next chunk, and what follows two in a row."""

from __future__ import annotations

from collections.abc import Sequence

from cachefs.policy.prefetch.seam import NOTHING, Access, Image, Wish


class NextChunk:
    """After a read, the chunk behind it. See Arm."""

    name = "next chunk"

    def opened(self, image: Image, time_s: float) -> Sequence[Wish]:
        """See Arm."""
        return NOTHING

    def observe(self, image: Image, access: Access) -> Sequence[Wish]:
        """See Arm."""
        behind = access.first + access.count
        return (Wish(behind, 1, 1.0),) if behind < image.chunks else NOTHING

    def judged(self, image: Image, chunk: int, was_used: bool) -> None:
        """See Arm."""

    def closed(self, image: Image, time_s: float) -> None:
        """See Arm."""


class PlainSequential(NextChunk):
    """After a read that goes on where one of the last 64 ended, as much again. See Arm."""

    name = "plain sequential"

    def __init__(self) -> None:
        self._ends: dict[int, int] = {}

    def observe(self, image: Image, access: Access) -> Sequence[Wish]:
        """See Arm."""
        behind = access.first + access.count
        length = self._ends.pop(access.first, 0)
        inside = self._ends.get(behind)
        if inside is not None:
            return NOTHING  # it stays within the chunk that was read last
        if len(self._ends) >= 64:
            del self._ends[next(iter(self._ends))]
        self._ends[behind] = length + access.count
        if not length:
            return NOTHING
        count = min(2, image.chunks - behind)
        return (Wish(behind, count, 1.0),) if count > 0 else NOTHING
