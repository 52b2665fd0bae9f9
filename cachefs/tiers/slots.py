"""The slots of one class: which are free, being filled, occupied, and by how many reads held.

Which slots are occupied is known here, not asked of the policy: a policy that is wrong costs good
order, and never a byte. No I/O here but the segment's own. Event loop only.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Iterable

import numpy as np

from cachefs.index.segments import INDEX_BITS, INDEX_MASK, Segment
from cachefs.metrics import Metrics
from cachefs.policy.evict.seam import UNKNOWN, Arrival, EvictionPolicy, Slots

logger = logging.getLogger(__name__)

_LEAST_FREE = 16
"""A burst of one 1 MiB read in 64 KiB chunks finds its slots without waiting."""

_MOST_LEARNED = 1024
"""Of uses that are told together, the newest: some thousands a second in the daemon's rhythm. A
policy that learns takes 1 us for each, and a lane may answer a hundred times as many."""


class ClassSlots:
    """Free -> filling -> occupied -> (evicted, until the commit) -> free."""

    def __init__(self, segment: Segment, policy: EvictionPolicy, metrics: Metrics) -> None:
        self.segment = segment
        self.policy = policy
        self._metrics = metrics
        self._has_erred = False
        """This policy has named a slot that it must not; it is logged once."""
        self.extents: set[int] = set()
        self.free: deque[int] = deque()
        self.filling: set[int] = set()
        self.pins: Counter[int] = Counter()
        self.occupied = 0
        self._holds = bytearray()
        """1 for each slot that is occupied, by its index."""
        self.is_hopeless = False
        """The keeper can find no room for this class now: nobody needs to wait for it."""
        self._base = segment.number << INDEX_BITS

    @property
    def total(self) -> int:
        """Slots that have disk space."""
        return len(self.extents) * self.segment.extent_slots

    @property
    def low(self) -> int:
        """Fewer free slots than this, and the keeper makes room."""
        return min(max(_LEAST_FREE, self.total // 64), max(1, self.total // 4))

    @property
    def high(self) -> int:
        """So many free slots the keeper makes then: two bursts, so that the next time is later."""
        return 2 * self.low

    def change_policy(self, policy: EvictionPolicy) -> None:
        """Rank by another policy, which learns what was used when."""
        snapshot = self.policy.snapshot()
        occupied = np.flatnonzero(np.frombuffer(self._holds, np.uint8))
        policy.grow(len(self._holds))
        policy.insert_many(occupied[np.argsort(snapshot[occupied], kind="stable")])
        policy.restore(snapshot)
        self.policy.close()
        self.policy = policy
        self._has_erred = False

    def add_extent(self, extent: int, bitmap: bytes = b"") -> None:
        """Take notice of an extent with disk space; `bitmap` says which slots are occupied."""
        slots = self.segment.extent_slots
        first = extent * slots
        self.extents.add(extent)
        self.policy.grow(first + slots)
        self._holds.extend(bytes(max(0, first + slots - len(self._holds))))
        bits = np.zeros(slots, np.uint8)
        if bitmap:
            bits = np.unpackbits(np.frombuffer(bitmap, np.uint8), bitorder="little")[:slots]
            self.policy.insert_many(first + np.flatnonzero(bits))
        self._holds[first : first + slots] = bits.tobytes()
        self.occupied += int(bits.sum())
        self.free.extend(self._base + first + i for i in np.flatnonzero(bits == 0).tolist())

    def next_extent(self) -> int:
        """Return the lowest extent that has no disk space."""
        extent = 0
        while extent in self.extents:
            extent += 1
        return extent

    def take(self) -> int | None:
        """Return a free slot to be filled, None if there is none."""
        if not self.free:
            return None
        slot = self.free.popleft()
        self.filling.add(slot)
        return slot

    def filled(self, slot: int, arrival: Arrival = UNKNOWN) -> None:
        """A slot's chunk is written and verified."""
        self.filling.remove(slot)
        self.occupied += 1
        self._holds[slot & INDEX_MASK] = 1
        self.policy.insert(slot & INDEX_MASK, arrival)

    def not_filled(self, slot: int) -> None:
        """A slot that was taken will not be filled."""
        self.filling.remove(slot)
        self.free.append(slot)

    def emptied(self, slot: int) -> bool:
        """A slot lost its chunk; it is free after the commit. False if it had none to lose."""
        if not self.is_occupied(slot):
            return False
        self.occupied -= 1
        self._holds[slot & INDEX_MASK] = 0
        self.policy.remove(slot & INDEX_MASK)
        return True

    def is_occupied(self, slot: int) -> bool:
        """Whether a slot holds a chunk."""
        index = slot & INDEX_MASK
        return index < len(self._holds) and self._holds[index] == 1

    def used(self, indexes: Slots) -> None:
        """Chunks were read from these slots, in this order; those that are empty by now count not.

        The lane tells of reads later than they were, of slots that an earlier daemon had too.
        """
        holds = np.frombuffer(self._holds, np.uint8)
        indexes = indexes[indexes < len(holds)]
        indexes = indexes[holds[indexes] != 0]
        if len(indexes) > _MOST_LEARNED:
            self.policy.renew_many(indexes[:-_MOST_LEARNED])
            indexes = indexes[-_MOST_LEARNED:]
        self.policy.touch_many(indexes)

    def release(self, slots: Iterable[int]) -> None:
        """The commit that emptied these slots is done."""
        extent_slots = self.segment.extent_slots
        kept = sorted(s for s in slots if (s & INDEX_MASK) // extent_slots in self.extents)
        self.free.extend(kept)

    def victims(self, count: int) -> list[int]:
        """Choose up to `count` occupied slots, none that a read holds; all have to be given up.

        Each once, whatever the policy says: a slot that is given up twice, or while it is filled,
        would be free twice, and two chunks would share it.
        """
        named = self.policy.evict(count, lambda index: (self._base | index) in self.pins)
        chosen: dict[int, None] = {}
        for index in named:
            slot = self._base | index
            is_there = 0 <= index < len(self._holds) and self._holds[index] == 1
            if is_there and slot not in self.pins and slot not in chosen and len(chosen) < count:
                chosen[slot] = None
                continue
            self._policy_erred(index)
            if is_there and slot not in chosen and not self.policy.holds(index):
                self.policy.insert(index)  # it stays, and the policy believes that it is gone
        return list(chosen)

    def coldest_extent(self) -> int:
        """Return the extent with the coldest chunk, or the last one if all are empty."""
        coldest = self.policy.coldest_slot()
        if coldest is not None:
            if coldest // self.segment.extent_slots in self.extents:
                return coldest // self.segment.extent_slots
            self._policy_erred(coldest)
        return max(self.extents)

    def _policy_erred(self, index: int) -> None:
        self._metrics.policy_errors += 1
        if not self._has_erred:
            self._has_erred = True
            logger.error(
                "the eviction policy named slot %d of class %d: not there, or held",
                index,
                self.segment.number,
            )

    def members(self, extent: int) -> list[int]:
        """Return the slot numbers of an extent."""
        first = self._base + extent * self.segment.extent_slots
        return list(range(first, first + self.segment.extent_slots))

    def remove_extent(self, extent: int) -> None:
        """Take an extent, none of whose slots is occupied or filling, out of use."""
        gone = set(self.members(extent))
        self.extents.discard(extent)
        self.free = deque(slot for slot in self.free if slot not in gone)
