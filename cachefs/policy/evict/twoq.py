"""2Q (Johnson and Shasha, VLDB'94): a FIFO for what is new, LRU for what came back.

20 bytes a slot, and ghosts for half of the slots (24 bytes each, their room a power of two).
Uses within the FIFO count for nothing: they are the bursts that follow a first use.
"""

from __future__ import annotations

from array import array

import numpy as np
import numpy.typing as npt

from cachefs.policy.evict.ghosts import Ghosts
from cachefs.policy.evict.lru import FEW, Keys, Lru
from cachefs.policy.evict.order import Order, Ticks
from cachefs.policy.evict.seam import UNKNOWN, Arrival, Keep, Slots

_IN_SHARE = 0.25
_OUT_SHARE = 0.5


class TwoQ(Lru):
    """A chunk comes into the LRU part when it is wanted again after it has left the FIFO."""

    def __init__(self, ticks: Ticks) -> None:
        super().__init__(ticks)
        self._in = Order(ticks)
        self._main = Order(ticks)
        self._out = Ghosts()
        self._keys = array("Q")

    def grow(self, slots: int) -> None:
        """See EvictionPolicy."""
        super().grow(slots)
        self._in.grow(slots)
        self._main.grow(slots)
        self._keys.frombytes(bytes(8 * max(0, slots - len(self._keys))))

    def insert(self, slot: int, arrival: Arrival = UNKNOWN) -> None:
        """See EvictionPolicy."""
        super().insert(slot)
        self._keys[slot] = arrival.key
        if self._out.discard(arrival.key):
            self._main.put(slot)
        else:
            self._in.put(slot)
        self._out.trim(int(_OUT_SHARE * len(self._keys)))

    def insert_many(self, slots: Slots) -> None:
        """See EvictionPolicy. What was there before counts as having come back."""
        super().insert_many(slots)
        self._main.put_many(slots)
        np.frombuffer(self._keys, np.uint64)[slots] = 0

    def inherit(self, stamps: npt.NDArray[np.uint32], keys: Keys, main_share: float) -> None:
        """See Lru. What is in the LRU part leaves it only for what came back: never too much."""
        super().inherit(stamps, keys, main_share)
        np.frombuffer(self._keys, np.uint64)[:] = keys
        occupied = np.flatnonzero(stamps)
        new = len(occupied) - int(main_share * len(occupied))
        if new:
            is_new = np.zeros(len(stamps), np.bool_)
            is_new[occupied[np.argpartition(stamps[occupied], new - 1)[:new]]] = True
            self._in.replace(np.where(is_new, stamps, 0).astype(np.uint32))
            self._main.replace(np.where(is_new, 0, stamps).astype(np.uint32))

    def touch(self, slot: int) -> None:
        """See EvictionPolicy."""
        if slot not in self._used:
            return
        self._used.renew(slot)
        if slot in self._main:
            self._main.renew(slot)

    def touch_many(self, slots: Slots) -> None:
        """See EvictionPolicy."""
        living = self._renewed(slots)
        if len(living) < FEW:
            for slot in living.tolist():
                if slot in self._main:
                    self._main.renew(slot)
        else:
            in_main = living[self._main.view()[living] != 0]
            if len(in_main):
                self._main.renew_many(in_main)

    def evict(self, count: int, keep: Keep) -> list[int]:
        """See EvictionPolicy."""
        chosen: list[int] = []
        while len(chosen) < count and self._used.count:
            is_new = self._in.count > int(_IN_SHARE * self._used.count) or not self._main.count
            first, second = (self._in, self._main) if is_new else (self._main, self._in)
            found = first.pop_many(1, keep)
            if not found:
                is_new, found = not is_new, second.pop_many(1, keep)
            if not found:
                break
            if is_new:
                self._out.add(self._keys[found[0]])
            super().remove(found[0])
            chosen += found
        return chosen

    def remove(self, slot: int) -> None:
        """See EvictionPolicy."""
        super().remove(slot)
        if not self._in.discard(slot):
            self._main.discard(slot)
