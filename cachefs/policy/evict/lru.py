"""Exact LRU in four bytes a slot.

Each slot has the tick of its last use; 0 is an empty slot. Victims come from a queue of the oldest
slots, made by one vectorised pass when it runs out. Every slot outside of the queue is younger than
every slot in it, and one that was used since is skipped, so the order is exactly LRU's, and the
pass is paid once for thousands of evictions.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

_QUEUE_LENGTH = 4096
_LAST_TICK = 2**32 - 1


class Ticks:
    """The clock that all classes of one L1 share, so that their slots compare."""

    def __init__(self) -> None:
        self._now = 1
        self._policies: list[Lru] = []

    def register(self, policy: Lru) -> None:
        """Tell the clock whose ticks it has to halve when it overflows."""
        self._policies.append(policy)

    def next(self) -> int:
        """Return the next tick."""
        self._now += 1
        if self._now >= _LAST_TICK:
            self._halve()
        return self._now

    def next_many(self, count: int) -> npt.NDArray[np.uint32]:
        """Return the next `count` ticks."""
        if self._now + count >= _LAST_TICK:
            self._halve()
        first = self._now + 1
        self._now += count
        return np.arange(first, first + count, dtype=np.uint32)

    def advance(self, used: int) -> None:
        """Make all ticks to come later than `used`."""
        self._now = max(self._now, used)

    def _halve(self) -> None:
        """Once in four billion uses: halve all ticks, which keeps their order nearly as it is."""
        for policy in self._policies:
            policy.halve()
        self._now = (_LAST_TICK >> 1) + 1


class Lru:
    """Least recently used, over slots that are announced by `grow`."""

    def __init__(self, ticks: Ticks) -> None:
        self._ticks = ticks
        self._used = array("I")
        self._queue: deque[tuple[int, int]] = deque()
        ticks.register(self)

    def grow(self, slots: int) -> None:
        """See EvictionPolicy."""
        self._used.frombytes(bytes(4 * max(0, slots - len(self._used))))

    def insert(self, slot: int) -> None:
        """See EvictionPolicy."""
        self._used[slot] = self._ticks.next()

    def touch(self, slot: int) -> None:
        """See EvictionPolicy."""
        self._used[slot] = self._ticks.next()

    def touch_many(self, slots: npt.NDArray[np.uint32]) -> None:
        """See EvictionPolicy."""
        view = self._view()
        slots = slots[slots < len(view)]
        slots = slots[view[slots] > 0]
        view[slots] = self._ticks.next_many(len(slots))  # of a slot that comes twice, the later

    def remove(self, slot: int) -> None:
        """See EvictionPolicy."""
        self._used[slot] = 0

    def holds(self, slot: int) -> bool:
        """See EvictionPolicy."""
        return self._used[slot] != 0

    def victims(self, count: int, keep: Callable[[int], bool]) -> list[int]:
        """See EvictionPolicy."""
        chosen: dict[int, None] = {}  # in order, and quick to ask: there may be thousands
        kept: list[tuple[int, int]] = []
        refilled = False
        while len(chosen) < count:
            if not self._queue:
                if refilled:
                    break
                self._refill()
                refilled = True
                continue
            slot, used = self._queue.popleft()
            if self._used[slot] != used or not used:
                continue  # used again or emptied since the queue was made
            if keep(slot):
                kept.append((slot, used))
            else:
                chosen[slot] = None
        self._queue.extendleft(reversed(kept))
        return list(chosen)

    def coldest(self) -> int:
        """See EvictionPolicy."""
        while self._queue and self._used[self._queue[0][0]] != self._queue[0][1]:
            self._queue.popleft()
        if not self._queue:
            self._refill()
        return self._queue[0][1] if self._queue else _LAST_TICK

    def snapshot(self) -> npt.NDArray[np.uint32]:
        """See EvictionPolicy."""
        return self._view().copy()

    def restore(self, used: npt.NDArray[np.uint32]) -> None:
        """See EvictionPolicy."""
        if used.ndim != 1 or used.dtype != np.uint32:
            raise ValueError("this is no snapshot")
        view = self._view()
        length = min(len(view), len(used))
        known = (view[:length] > 0) & (used[:length] > 0)
        view[:length][known] = used[:length][known]
        if len(view):
            self._ticks.advance(int(view.max()))
        self._queue.clear()

    def halve(self) -> None:
        """Halve all ticks; an occupied slot stays occupied."""
        view = self._view()
        view[:] = np.maximum(view >> 1, view > 0)
        self._queue.clear()

    def _refill(self) -> None:
        view = self._view()
        occupied = np.flatnonzero(view)
        used = view[occupied]
        if len(used) > _QUEUE_LENGTH:
            oldest = np.argpartition(used, _QUEUE_LENGTH)[:_QUEUE_LENGTH]
            occupied, used = occupied[oldest], used[oldest]
        order = np.argsort(used, kind="stable")
        self._queue.extend(zip(occupied[order].tolist(), used[order].tolist(), strict=True))

    def _view(self) -> npt.NDArray[np.uint32]:
        return np.frombuffer(self._used, np.uint32)
