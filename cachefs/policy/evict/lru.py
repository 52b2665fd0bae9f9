"""Exact LRU in four bytes a slot, and what all policies have in common: the recency of slots."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cachefs.policy.evict.order import LAST_TICK, Order, Ticks
from cachefs.policy.evict.seam import UNKNOWN, Arrival, Keep, Slots

Keys = npt.NDArray[np.uint64]
"""(slots,): the key of the chunk in each."""

FEW = 12
"""Under so many slots a loop is faster than numpy."""


class Lru:
    """Least recently used. The other policies add to what it knows of each slot."""

    def __init__(self, ticks: Ticks) -> None:
        self._ticks = ticks
        self._used = Order(ticks)

    def grow(self, slots: int) -> None:
        """See EvictionPolicy."""
        self._used.grow(slots)

    def insert(self, slot: int, arrival: Arrival = UNKNOWN) -> None:
        """See EvictionPolicy."""
        self._used.put(slot)

    def insert_many(self, slots: Slots) -> None:
        """See EvictionPolicy."""
        self._used.put_many(slots)

    def inherit(self, stamps: npt.NDArray[np.uint32], keys: Keys, main_share: float) -> None:
        """Go on from another policy, with the order of use and the keys of all slots.

        `main_share`: of the occupied slots, the part that this policy would have had time to find
        worth keeping, if it had ruled before.
        """
        self.grow(len(stamps))
        self.insert_many(np.flatnonzero(stamps))
        self.restore(stamps)

    def touch(self, slot: int) -> None:
        """See EvictionPolicy."""
        if self._used.stamps[slot]:
            self._used.renew(slot)

    def touch_many(self, slots: Slots) -> None:
        """See EvictionPolicy."""
        self._renewed(slots)

    def renew_many(self, slots: Slots) -> None:
        """See EvictionPolicy."""
        self.touch_many(slots)

    def evict(self, count: int, keep: Keep) -> list[int]:
        """See EvictionPolicy."""
        return self._used.pop_many(count, keep)

    def remove(self, slot: int) -> None:
        """See EvictionPolicy."""
        self._used.discard(slot)

    def holds(self, slot: int) -> bool:
        """See EvictionPolicy."""
        return slot in self._used

    def coldest(self) -> int:
        """See EvictionPolicy."""
        found = self._used.oldest()
        return LAST_TICK if found is None else found[1]

    def coldest_slot(self) -> int | None:
        """See EvictionPolicy."""
        found = self._used.oldest()
        return None if found is None else found[0]

    def snapshot(self) -> npt.NDArray[np.uint32]:
        """See EvictionPolicy."""
        return self._used.view().copy()

    def restore(self, used: npt.NDArray[np.uint32]) -> None:
        """See EvictionPolicy."""
        if used.ndim != 1 or used.dtype != np.uint32:
            raise ValueError("this is no snapshot")
        stamps = self.snapshot()
        length = min(len(stamps), len(used))
        known = (stamps[:length] > 0) & (used[:length] > 0)
        stamps[:length][known] = used[:length][known]
        for order in self._orders():
            # What a policy put in order of slots as the daemon started is in order of use now.
            order.replace(np.where(order.view() > 0, stamps, 0).astype(np.uint32))
        if len(stamps):
            self._ticks.advance(int(stamps.max()))

    def close(self) -> None:
        """This policy is no longer in use: its clock may forget it."""
        self._ticks.forget(self._orders())

    def _orders(self) -> list[Order]:
        return [part for part in vars(self).values() if isinstance(part, Order)]

    def _renewed(self, slots: Slots) -> Slots:
        """Note the use of those slots that are occupied, and return them."""
        stamps = self._used.stamps
        if len(slots) < FEW:
            living = [slot for slot in slots.tolist() if stamps[slot]]
            for slot in living:
                self._used.renew(slot)
            return slots if len(living) == len(slots) else np.array(living, np.int64)
        known = self._used.view()[slots] != 0
        if not known.all():
            slots = slots[known]
        self._used.renew_many(slots)
        return slots
