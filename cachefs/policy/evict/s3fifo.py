"""S3-FIFO (Yang et al., SOSP'23): a small queue on probation, a main queue, ghosts of the first.

21 bytes a slot, and ghosts for 0.9 of the slots (24 bytes each, their room a power of two).
A one-off scan passes through the small queue and leaves the main one alone.
"""

from __future__ import annotations

from array import array

import numpy as np
import numpy.typing as npt

from cachefs.policy.evict.ghosts import Ghosts
from cachefs.policy.evict.lru import FEW, Keys, Lru
from cachefs.policy.evict.order import Order, Ticks
from cachefs.policy.evict.seam import UNKNOWN, Arrival, Keep, Slots

_SMALL_SHARE = 0.1
_GHOST_SHARE = 0.9
_USES_FOR_MAIN = 2
_MOST_USES = 3


class S3Fifo(Lru):
    """New chunks have to be used twice in the small queue to come into the main one."""

    def __init__(self, ticks: Ticks) -> None:
        super().__init__(ticks)
        self._small = Order(ticks)
        self._main = Order(ticks)
        self._ghosts = Ghosts()
        self._uses = bytearray()
        self._keys = array("Q")
        self._has_evicted = False
        """Until it has, what does not fit into the small queue goes into the main one."""

    def grow(self, slots: int) -> None:
        """See EvictionPolicy."""
        super().grow(slots)
        self._small.grow(slots)
        self._main.grow(slots)
        self._uses.extend(bytes(max(0, slots - len(self._uses))))
        self._keys.frombytes(bytes(8 * max(0, slots - len(self._keys))))

    def insert(self, slot: int, arrival: Arrival = UNKNOWN) -> None:
        """See EvictionPolicy."""
        super().insert(slot)
        self._keys[slot] = arrival.key
        self._uses[slot] = 0
        small = int(_SMALL_SHARE * len(self._keys))
        is_early = not self._has_evicted and self._small.count >= small
        if self._ghosts.discard(arrival.key) or is_early:
            self._main.put(slot)
        else:
            self._small.put(slot)
        # Not when it is added: the key that is asked for may be the oldest.
        self._ghosts.trim(int(_GHOST_SHARE * len(self._keys)))

    def insert_many(self, slots: Slots) -> None:
        """See EvictionPolicy. What was there before is past its probation."""
        super().insert_many(slots)
        self._main.put_many(slots)
        np.frombuffer(self._keys, np.uint64)[slots] = 0
        np.frombuffer(self._uses, np.uint8)[slots] = 0

    def inherit(self, stamps: npt.NDArray[np.uint32], keys: Keys, main_share: float) -> None:
        """See Lru. All is in the main queue, as when this policy fills an empty cache."""
        super().inherit(stamps, keys, main_share)
        np.frombuffer(self._keys, np.uint64)[:] = keys

    def touch(self, slot: int) -> None:
        """See EvictionPolicy."""
        if slot not in self._used:
            return
        self._used.renew(slot)
        if self._uses[slot] < _MOST_USES:
            self._uses[slot] += 1

    def touch_many(self, slots: Slots) -> None:
        """See EvictionPolicy."""
        living, uses = self._renewed(slots), self._uses
        if len(living) < FEW:
            for slot in living.tolist():
                if uses[slot] < _MOST_USES:
                    uses[slot] += 1
        else:
            found, times = np.unique(living, return_counts=True)
            view = np.frombuffer(uses, np.uint8)
            view[found] = np.minimum(view[found] + times, _MOST_USES)

    def evict(self, count: int, keep: Keep) -> list[int]:
        """See EvictionPolicy."""
        chosen: list[int] = []
        self._has_evicted = True
        # Enough to come to those that were used most often, while the others are kept.
        patience = (_MOST_USES + 2) * self._used.count
        while len(chosen) < count and patience > 0 and self._used.count:
            small = int(_SMALL_SHARE * self._used.count)
            is_main = self._main.count > self._used.count - small or not self._small.count
            slot = self._from_main() if is_main else self._from_small()
            if slot is None:
                continue  # all of the small queue went on
            if keep(slot):
                patience -= 1
                self._main.put(slot)
                continue
            if not is_main:
                self._ghosts.add(self._keys[slot])
            super().remove(slot)
            chosen.append(slot)
        return chosen

    def remove(self, slot: int) -> None:
        """See EvictionPolicy."""
        super().remove(slot)
        if not self._small.discard(slot):
            self._main.discard(slot)

    def _from_small(self) -> int | None:
        """Take the oldest of the small queue out that does not go on in the main one."""
        while (slot := self._small.pop()) is not None:
            if self._uses[slot] < _USES_FOR_MAIN:
                return slot
            self._uses[slot] = 0
            self._main.put(slot)
        return None

    def _from_main(self) -> int | None:
        """Take the oldest of the main queue out that does not go round once more."""
        while (slot := self._main.pop()) is not None:
            if not self._uses[slot]:
                return slot
            self._uses[slot] -= 1
            self._main.put(slot)
        return None
