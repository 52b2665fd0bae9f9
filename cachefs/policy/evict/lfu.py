"""LFU: the least often used, of those the least recently used. 6 bytes a slot."""

from __future__ import annotations

from array import array
from collections import Counter, deque
from collections.abc import Iterator

import numpy as np

from cachefs.policy.evict.lru import FEW, Lru
from cachefs.policy.evict.order import Ticks
from cachefs.policy.evict.seam import UNKNOWN, Arrival, Keep, Slots

_MOST_USES = 2**16 - 1
_QUEUE_LENGTH = 4096
_MOST_QUEUES = 16


class Lfu(Lru):
    """Counts uses since a chunk came in; 0 is an empty slot."""

    def __init__(self, ticks: Ticks) -> None:
        super().__init__(ticks)
        self._uses = array("H")
        self._levels: Counter[int] = Counter()
        """How many slots were used so often."""
        self._queues: dict[int, deque[tuple[int, int]]] = {}
        """The oldest slots of a level with their stamps; the rest of the level is younger."""
        self._whole: set[int] = set()
        """The levels all of whose slots are in their queue."""

    def grow(self, slots: int) -> None:
        """See EvictionPolicy."""
        super().grow(slots)
        self._uses.frombytes(bytes(2 * max(0, slots - len(self._uses))))

    def insert(self, slot: int, arrival: Arrival = UNKNOWN) -> None:
        """See EvictionPolicy."""
        self.remove(slot)
        stamp = self._used.put(slot)
        self._uses[slot] = 1
        self._levels[1] += 1
        self._joins(1, slot, stamp)

    def insert_many(self, slots: Slots) -> None:
        """See EvictionPolicy."""
        super().insert_many(slots)
        np.frombuffer(self._uses, np.uint16)[slots] = 1
        self._levels[1] += len(slots)
        self._whole.discard(1)

    def touch(self, slot: int) -> None:
        """See EvictionPolicy."""
        if slot not in self._used:
            return
        self._used.renew(slot)
        self._count_up(slot, 1)

    def touch_many(self, slots: Slots) -> None:
        """See EvictionPolicy."""
        living = self._renewed(slots)
        if len(living) < FEW:
            for slot in living.tolist():
                self._count_up(slot, 1)
            return
        found, times = np.unique(living, return_counts=True)
        view = np.frombuffer(self._uses, np.uint16)
        before = view[found]
        after = np.minimum(before.astype(np.int64) + times, _MOST_USES)
        view[found] = after
        self._levels.subtract(before.tolist())
        self._levels.update(after.tolist())
        for level in np.unique(before).tolist():
            self._forget_if_empty(level)
        self._whole.difference_update(after.tolist())

    def evict(self, count: int, keep: Keep) -> list[int]:
        """See EvictionPolicy."""
        chosen: list[int] = []
        # Nearly always those that were used once are enough, and the levels need no sorting.
        for level in self._levels_upward():
            self._evict_from(level, count, keep, chosen)
            if len(chosen) == count:
                break
        return chosen

    def remove(self, slot: int) -> None:
        """See EvictionPolicy."""
        super().remove(slot)
        if self._uses[slot]:
            self._levels[self._uses[slot]] -= 1
            self._forget_if_empty(self._uses[slot])
            self._uses[slot] = 0

    def _evict_from(self, level: int, count: int, keep: Keep, chosen: list[int]) -> None:
        kept: list[tuple[int, int]] = []
        is_anew = False
        while len(chosen) < count and self._levels[level] > len(kept):
            queue = self._queues.get(level)
            if not queue:
                if is_anew:
                    break
                self._refill(level)
                is_anew = True
                kept.clear()  # they are in the new queue
                continue
            slot, stamp = queue.popleft()
            if self._used.stamps[slot] != stamp or self._uses[slot] != level:
                continue
            if keep(slot):
                kept.append((slot, stamp))
            else:
                self.remove(slot)
                chosen.append(slot)
        if kept:
            self._queues[level].extendleft(reversed(kept))

    def _levels_upward(self) -> Iterator[int]:
        """Nearly always those that were used once are enough, and the others need no sorting."""
        if 1 in self._levels:
            yield 1
        yield from sorted(level for level in self._levels if level > 1)

    def _count_up(self, slot: int, times: int) -> None:
        before = self._uses[slot]
        after = self._uses[slot] = min(before + times, _MOST_USES)
        self._levels[before] -= 1
        self._levels[after] += 1
        self._forget_if_empty(before)
        self._joins(after, slot, self._used.stamps[slot])

    def _joins(self, level: int, slot: int, stamp: int) -> None:
        """A slot is the youngest of a level."""
        if level in self._whole:
            queue = self._queues[level]
            if len(queue) < _QUEUE_LENGTH:
                queue.append((slot, stamp))
            else:
                self._whole.discard(level)

    def _forget_if_empty(self, level: int) -> None:
        if not self._levels[level]:
            del self._levels[level]
            self._queues.pop(level, None)
            self._whole.discard(level)

    def _refill(self, level: int) -> None:
        """Queue the least recently used slots of a level."""
        slots = np.flatnonzero(np.frombuffer(self._uses, np.uint16) == level)
        stamps = self._used.view()[slots]
        self._whole.add(level)
        if len(slots) > _QUEUE_LENGTH:
            near = np.argpartition(stamps, _QUEUE_LENGTH)[:_QUEUE_LENGTH]
            slots, stamps = slots[near], stamps[near]
            self._whole.discard(level)
        order = np.argsort(stamps, kind="stable")
        found = zip(slots[order].tolist(), stamps[order].tolist(), strict=True)
        self._queues[level] = deque(found)
        if len(self._queues) > _MOST_QUEUES:
            highest = max(self._queues)
            del self._queues[highest]
            self._whole.discard(highest)
