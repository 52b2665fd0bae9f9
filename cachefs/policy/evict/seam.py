"""The seam that every eviction policy fills.

A policy knows slots by number, nothing else. It is told what happens to them and names the ones
to give up; it never does anything itself. All calls come from one thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt


class EvictionPolicy(Protocol):
    """Ranks the occupied slots of one class of slots."""

    def grow(self, slots: int) -> None:
        """Slots 0 to `slots` - 1 exist from now on; new ones are empty."""
        ...

    def insert(self, slot: int) -> None:
        """A chunk was put into a slot."""
        ...

    def touch(self, slot: int) -> None:
        """A chunk was read from its slot."""
        ...

    def touch_many(self, slots: npt.NDArray[np.uint32]) -> None:
        """Chunks were read from these slots, in this order. Some may be empty by now.

        slots: (n,) uint32; a slot can come more than once.
        """
        ...

    def remove(self, slot: int) -> None:
        """A slot is empty."""
        ...

    def holds(self, slot: int) -> bool:
        """Return whether a slot is occupied."""
        ...

    def victims(self, count: int, keep: Callable[[int], bool]) -> list[int]:
        """Return up to `count` slots to give up, the best first; none that `keep` holds."""
        ...

    def coldest(self) -> int:
        """Return how cold the next victim is: compares across classes, smaller is colder."""
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
