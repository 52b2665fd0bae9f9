"""SIEVE (Zhang et al., NSDI'24): a queue by insertion, one bit, and a hand that stays where it was.

9 bytes a slot.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from cachefs.policy.evict.lru import FEW, Lru
from cachefs.policy.evict.order import Order, Ticks
from cachefs.policy.evict.seam import UNKNOWN, Arrival, Keep, Slots


class Sieve(Lru):
    """The hand moves from the oldest to the youngest; what was used since it came by last stays."""

    def __init__(self, ticks: Ticks) -> None:
        super().__init__(ticks)
        self._sweep = Sweep(ticks)
        self._visited = bytearray()

    def grow(self, slots: int) -> None:
        """See EvictionPolicy."""
        super().grow(slots)
        self._sweep.grow(slots)
        self._visited.extend(bytes(max(0, slots - len(self._visited))))

    def insert(self, slot: int, arrival: Arrival = UNKNOWN) -> None:
        """See EvictionPolicy."""
        super().insert(slot)
        self._sweep.put(slot)
        self._visited[slot] = 0

    def insert_many(self, slots: Slots) -> None:
        """See EvictionPolicy."""
        super().insert_many(slots)
        self._sweep.put_many(slots)
        np.frombuffer(self._visited, np.uint8)[slots] = 0

    def touch(self, slot: int) -> None:
        """See EvictionPolicy."""
        if slot not in self._used:
            return
        self._used.renew(slot)
        self._visited[slot] = 1

    def touch_many(self, slots: Slots) -> None:
        """See EvictionPolicy."""
        living = self._renewed(slots)
        if len(living) < FEW:
            for slot in living.tolist():
                self._visited[slot] = 1
        else:
            np.frombuffer(self._visited, np.uint8)[living] = 1

    def evict(self, count: int, keep: Keep) -> list[int]:
        """See EvictionPolicy."""
        chosen: list[int] = []
        kept_in_a_row = 0
        while len(chosen) < count and kept_in_a_row <= self._sweep.count:
            slot = self._sweep.next()
            if slot is None:
                break
            if self._visited[slot]:
                self._visited[slot] = 0
            elif keep(slot):
                kept_in_a_row += 1
            else:
                kept_in_a_row = 0
                self.remove(slot)
                chosen.append(slot)
        return chosen

    def remove(self, slot: int) -> None:
        """See EvictionPolicy."""
        super().remove(slot)
        self._sweep.discard(slot)


class Sweep(Order):
    """An order with a hand that goes round."""

    def __init__(self, ticks: Ticks) -> None:
        super().__init__(ticks)
        self._hand = 0
        self._ahead: deque[tuple[int, int]] = deque()

    def next(self) -> int | None:
        """Move the hand by one and return the slot that it came from, None if there is none."""
        self._look_ahead()
        if not self._ahead:
            return None
        slot, self._hand = self._ahead.popleft()
        self._look_ahead()  # behind the youngest the hand goes round at once
        return slot

    def forget_queue(self) -> None:
        """See Order."""
        super().forget_queue()
        self._ahead.clear()

    def halve(self) -> None:
        """See Order."""
        super().halve()
        self._hand >>= 1

    def _look_ahead(self) -> None:
        for _ in range(2):
            while self._ahead and self.stamps[self._ahead[0][0]] != self._ahead[0][1]:
                self._ahead.popleft()
            if not self._ahead:
                self._ahead, _ = self.oldest_above(self._hand)
            if self._ahead:
                return
            self._hand = 0
