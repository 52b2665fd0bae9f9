"""Times in four bytes: the lowest 32 bits of a count of uses that has no end.

Ages are right up to 2**31 uses. What would be older is moved up in turns, a small part of a table
at a time, to 2**30 uses ago, which is as good as for ever: no feature of a model tells them apart,
and no call looks at all slots.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cachefs.policy.evict.ml.rows import Times

Stamps = npt.NDArray[np.uint32]

NEVER = 0

_OLD = 1 << 30
_TURN = 1 << 20
"""Uses between two turns."""
_TURNS = 1 << 9
"""In a round: whatever is not moved up in time is 2**30 + 2**29 uses old at most."""


def stamps_of(times: Times) -> Stamps:
    """Return times as tables have them; none of them is NEVER."""
    stamps = times.astype(np.uint32)
    return np.maximum(stamps, np.uint32(NEVER + 1))


def stamp_of(time: int) -> np.uint32:
    """Return one time as tables have them."""
    return np.uint32(max(time & 0xFFFFFFFF, NEVER + 1))


def since(now: int | Times, stamps: Stamps) -> Times:
    """Return how long ago that was; below zero in the future. Of NEVER it says nothing."""
    low = np.asarray(now).astype(np.uint32)
    return (low - stamps).view(np.int32).astype(np.int64)


class Sweep:
    """Moves up what is too old, in turns. One for each table."""

    def __init__(self) -> None:
        self._due = _TURN
        self._turn = 0

    def turn(self, now: int, *tables: Stamps) -> None:
        """Look at the next part of the tables, if it is time."""
        while now >= self._due:
            self._due += _TURN
            for table in tables:
                begin = len(table) * self._turn // _TURNS
                part = table[begin : len(table) * (self._turn + 1) // _TURNS]
                is_old = (part != NEVER) & (since(now, part) > _OLD)
                part[is_old] = stamp_of(now - _OLD)
            self._turn = (self._turn + 1) % _TURNS
