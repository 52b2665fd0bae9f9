"""The seam that every eviction policy fills.

A policy knows slots by number, and of the chunks in them what `Arrival` says. It is told what
happens to them and chooses the ones to give up; it never does anything itself. All calls come from
one thread. The verbs are those of the literature: find (here `touch`: whoever found the chunk tells
it, one by one or in batches), insert, evict, remove.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Slots = npt.NDArray[np.int64]
"""Slot numbers, in the order of use; a slot may be in it more than once."""

Keep = Callable[[int], bool]
"""Whether a slot has to stay for now."""


class Arrival(NamedTuple):
    """What a policy may know of a chunk that comes into a slot."""

    key: int = 0
    """64 bits of the chunk id, by which a chunk that was given up is known again; 0: not known."""
    place: int = 0
    """Where it lies among others, 40 bits; the chunk behind it is at `place + span`. 0: unknown."""
    span: int = 0
    is_prefetched: bool = False
    """Nobody has asked for it yet."""
    cost: float = 1.0
    """What fetching it again takes, compared with a fetch from the store."""
    frame_share: float = 1.0
    """Stored size / plain size."""


UNKNOWN = Arrival()
"""Of a chunk that was there when the daemon started."""


class EvictionPolicy(Protocol):
    """Ranks the occupied slots of one class of slots."""

    def grow(self, slots: int) -> None:
        """Slots 0 to `slots` - 1 exist from now on; new ones are empty."""
        ...

    def insert(self, slot: int, arrival: Arrival = UNKNOWN) -> None:
        """A chunk was put into a slot."""
        ...

    def insert_many(self, slots: Slots) -> None:
        """Chunks of which nothing is known are in these slots; each is named once."""
        ...

    def touch(self, slot: int) -> None:
        """A chunk was read from its slot."""
        ...

    def touch_many(self, slots: Slots) -> None:
        """Chunks were read, in this order. Slots that are empty by now are passed over."""
        ...

    def renew_many(self, slots: Slots) -> None:
        """As `touch_many`, of so many reads that not each needs to be learned from."""
        ...

    def evict(self, count: int, keep: Keep) -> list[int]:
        """Choose up to `count` slots, none that `keep` holds, and hold them for empty from now on.

        The chunks in them are remembered as given up. The caller has to empty every one of them.
        """
        ...

    def remove(self, slot: int) -> None:
        """A slot is empty, whether or not `evict` chose it."""
        ...

    def holds(self, slot: int) -> bool:
        """Return whether a slot is occupied."""
        ...

    def coldest(self) -> int:
        """Return how long ago the least recently used slot was used: smaller is colder.

        Compares across classes that share a clock, whatever their policies.
        """
        ...

    def coldest_slot(self) -> int | None:
        """Return the least recently used slot, None if all are empty."""
        ...

    def close(self) -> None:
        """This policy is no longer in use."""
        ...

    def snapshot(self) -> npt.NDArray[np.uint32]:
        """Return what a restart needs to rank as before: (slots,) uint32, 0 = empty."""
        ...

    def restore(self, used: npt.NDArray[np.uint32]) -> None:
        """Take over a snapshot of an earlier run for the slots that are occupied in both.

        Raises:
            ValueError: this is no snapshot.
        """
        ...
