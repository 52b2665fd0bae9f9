"""ARC (Megiddo and Modha, FAST'03): used once, used again, and a border between them that learns.

20 bytes a slot, and ghosts for as many chunks as there are slots (24 bytes each, their room a power
of two). One thing is unlike the paper: eviction happens ahead of need, so the border moves after
the eviction that a missing chunk makes, not before it.
"""

from __future__ import annotations

from array import array

import numpy as np

from cachefs.policy.evict.ghosts import Ghosts
from cachefs.policy.evict.lru import FEW, Lru
from cachefs.policy.evict.order import Order, Ticks
from cachefs.policy.evict.seam import UNKNOWN, Arrival, Keep, Slots


class Arc(Lru):
    """T1, T2, B1 and B2 of the paper are `_once`, `_again` and their ghosts."""

    def __init__(self, ticks: Ticks) -> None:
        super().__init__(ticks)
        self._once = Order(ticks)
        self._again = Order(ticks)
        self._once_ghosts = Ghosts()
        self._again_ghosts = Ghosts()
        self._keys = array("Q")
        self._border = 0.0
        """How many slots those that were used once may have: p of the paper."""

    def grow(self, slots: int) -> None:
        """See EvictionPolicy."""
        super().grow(slots)
        self._once.grow(slots)
        self._again.grow(slots)
        self._keys.frombytes(bytes(8 * max(0, slots - len(self._keys))))

    def insert(self, slot: int, arrival: Arrival = UNKNOWN) -> None:
        """See EvictionPolicy."""
        super().insert(slot)
        self._keys[slot] = arrival.key
        size = len(self._keys)
        once, again = self._once_ghosts, self._again_ghosts
        ghosts = max(1, len(once)), max(1, len(again))
        if once.discard(arrival.key):
            self._border = min(self._border + max(1.0, ghosts[1] / ghosts[0]), size)
            self._again.put(slot)
        elif again.discard(arrival.key):
            self._border = max(self._border - max(1.0, ghosts[0] / ghosts[1]), 0.0)
            self._again.put(slot)
        else:
            self._once.put(slot)
        once.trim(size - self._once.count)
        again.trim(2 * size - self._used.count - len(once))

    def insert_many(self, slots: Slots) -> None:
        """See EvictionPolicy. What was there before counts as used again."""
        super().insert_many(slots)
        self._again.put_many(slots)
        np.frombuffer(self._keys, np.uint64)[slots] = 0

    def touch(self, slot: int) -> None:
        """See EvictionPolicy."""
        if slot not in self._used:
            return
        self._used.renew(slot)
        self._once.discard(slot)
        self._again.put(slot)

    def touch_many(self, slots: Slots) -> None:
        """See EvictionPolicy."""
        living = self._renewed(slots)
        if len(living) < FEW:
            for slot in living.tolist():
                self._once.discard(slot)
                self._again.put(slot)
            return
        moving = np.unique(living[self._once.view()[living] != 0])
        self._once.view()[moving] = 0
        self._once.count -= len(moving)
        self._again.count += len(moving)
        self._again.renew_many(living)

    def evict(self, count: int, keep: Keep) -> list[int]:
        """See EvictionPolicy."""
        chosen: list[int] = []
        while len(chosen) < count and self._used.count:
            is_once = self._once.count > self._border or not self._again.count
            first, second = (self._once, self._again) if is_once else (self._again, self._once)
            found = first.pop_many(1, keep)
            if not found:
                is_once, found = not is_once, second.pop_many(1, keep)
            if not found:
                break
            ghosts = self._once_ghosts if is_once else self._again_ghosts
            ghosts.add(self._keys[found[0]])
            super().remove(found[0])
            chosen += found
        return chosen

    def remove(self, slot: int) -> None:
        """See EvictionPolicy."""
        super().remove(slot)
        if not self._once.discard(slot):
            self._again.discard(slot)
