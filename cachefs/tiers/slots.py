"""The slots of one class: which are free, being filled, occupied, and by how many reads held.

No I/O here but the segment's own. Event loop only.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable

import numpy as np

from cachefs.index.segments import INDEX_BITS, INDEX_MASK, Segment
from cachefs.policy.evict.seam import UNKNOWN, Arrival, EvictionPolicy

_LEAST_FREE = 16
"""A burst of one 1 MiB read in 64 KiB chunks finds its slots without waiting."""


class ClassSlots:
    """Free -> filling -> occupied -> (evicted, until the commit) -> free."""

    def __init__(self, segment: Segment, policy: EvictionPolicy) -> None:
        self.segment = segment
        self.policy = policy
        self.extents: set[int] = set()
        self.free: deque[int] = deque()
        self.filling: set[int] = set()
        self.pins: Counter[int] = Counter()
        self.occupied = 0
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
        occupied = np.flatnonzero(snapshot)
        policy.grow(len(snapshot))
        policy.insert_many(occupied[np.argsort(snapshot[occupied], kind="stable")])
        policy.restore(snapshot)
        self.policy.close()
        self.policy = policy

    def add_extent(self, extent: int, bitmap: bytes = b"") -> None:
        """Take notice of an extent with disk space; `bitmap` says which slots are occupied."""
        slots = self.segment.extent_slots
        first = extent * slots
        self.extents.add(extent)
        self.policy.grow(first + slots)
        bits = np.zeros(slots, np.uint8)
        if bitmap:
            bits = np.unpackbits(np.frombuffer(bitmap, np.uint8), bitorder="little")[:slots]
            self.policy.insert_many(first + np.flatnonzero(bits))
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
        self.policy.insert(slot & INDEX_MASK, arrival)

    def not_filled(self, slot: int) -> None:
        """A slot that was taken will not be filled."""
        self.filling.remove(slot)
        self.free.append(slot)

    def emptied(self, slot: int) -> None:
        """An occupied slot lost its chunk; it is free after the commit."""
        self.occupied -= 1
        self.policy.remove(slot & INDEX_MASK)

    def is_occupied(self, slot: int) -> bool:
        """Whether a slot holds a chunk, as the policy was told."""
        return self.policy.holds(slot & INDEX_MASK)

    def release(self, slots: Iterable[int]) -> None:
        """The commit that emptied these slots is done."""
        extent_slots = self.segment.extent_slots
        kept = sorted(s for s in slots if (s & INDEX_MASK) // extent_slots in self.extents)
        self.free.extend(kept)

    def victims(self, count: int) -> list[int]:
        """Choose up to `count` occupied slots, none that a read holds; all have to be given up."""
        chosen = self.policy.evict(count, lambda index: (self._base | index) in self.pins)
        # A slot that is named twice would be free twice, and two chunks would share it.
        return [self._base | index for index in dict.fromkeys(chosen)]

    def members(self, extent: int) -> list[int]:
        """Return the slot numbers of an extent."""
        first = self._base + extent * self.segment.extent_slots
        return list(range(first, first + self.segment.extent_slots))

    def remove_extent(self, extent: int) -> None:
        """Take an extent, none of whose slots is occupied or filling, out of use."""
        gone = set(self.members(extent))
        self.extents.discard(extent)
        self.free = deque(slot for slot in self.free if slot not in gone)
