"""The keys of chunks that were given up, oldest first, exact, in arrays.

A ring holds the keys in the order in which they came; a table with linear probing finds a key's
place in the ring. 24 bytes for each key that there is room for, which is a power of two.
"""

from __future__ import annotations

from array import array

import numpy as np
import numpy.typing as npt

_LEAST = 64
_EMPTY = 0
_MIX = 0x9E3779B97F4A7C15
_MASK64 = 2**64 - 1


class Ghosts:
    """A set of 64-bit keys that knows which came first. 0 is no key."""

    def __init__(self) -> None:
        self.count = 0
        self._reset(_LEAST)

    def __len__(self) -> int:
        return self.count

    def __contains__(self, key: int) -> bool:
        return bool(key) and self._find(key) >= 0

    def add(self, key: int) -> None:
        """Remember a key as the youngest."""
        if not key:
            return
        self.discard(key)
        if self._young - self._old == len(self._ring):
            self._rebuild()
        place = self._young & (len(self._ring) - 1)
        self._ring[place] = key
        self._young += 1
        self.count += 1
        table, mask = self._table, len(self._table) - 1
        at = self._start(key)
        while table[at]:
            at = (at + 1) & mask
        table[at] = place + 1

    def discard(self, key: int) -> bool:
        """Forget a key; returns whether it was remembered."""
        at = self._find(key) if key else -1
        if at < 0:
            return False
        self._ring[self._table[at] - 1] = 0
        self.count -= 1
        self._close_gap(at)
        return True

    def trim(self, most: int) -> None:
        """Forget the oldest until no more than `most` are left."""
        ring, mask = self._ring, len(self._ring) - 1
        while self.count > max(0, most):
            key = ring[self._old & mask]
            if key:
                self.discard(key)
            self._old += 1

    def _find(self, key: int) -> int:
        """Return where in the table a key is, -1 if it is not."""
        table, ring, mask = self._table, self._ring, len(self._table) - 1
        at = self._start(key)
        while entry := table[at]:
            if ring[entry - 1] == key:
                return at
            at = (at + 1) & mask
        return -1

    def _start(self, key: int) -> int:
        return (((key * _MIX) & _MASK64) >> 32) & (len(self._table) - 1)

    def _close_gap(self, gap: int) -> None:
        """Empty a place of the table; those behind it that would not be found move up."""
        table, ring, mask = self._table, self._ring, len(self._table) - 1
        at = gap
        while entry := table[at := (at + 1) & mask]:
            start = self._start(ring[entry - 1])
            if (at - start) & mask >= (at - gap) & mask:
                table[gap] = entry
                gap = at
        table[gap] = _EMPTY

    def _reset(self, size: int) -> None:
        self._ring = array("Q", bytes(8 * size))
        self._table = array("I", bytes(4 * 4 * size))
        self._old = self._young = 0

    def _rebuild(self) -> None:
        """Close the gaps of the ring; twice the room if it is mostly full."""
        size = len(self._ring)
        keys = np.frombuffer(self._ring, np.uint64)
        keys = np.roll(keys, -(self._old & (size - 1)))
        keys = keys[keys != 0]
        self._reset(2 * size if 2 * len(keys) > size else size)
        self._young = len(keys)
        np.frombuffer(self._ring, np.uint64)[: len(keys)] = keys
        self._index(keys)

    def _index(self, keys: npt.NDArray[np.uint64]) -> None:
        """Fill the empty table: in the order of their starts, each goes to its start or behind."""
        size = len(self._table)
        start = ((keys * np.uint64(_MIX)) >> np.uint64(32)).astype(np.int64) & (size - 1)
        order = np.argsort(start, kind="stable")
        rank = np.arange(len(keys))
        at = np.maximum.accumulate(start[order] - rank) + rank
        inside = at < size
        np.frombuffer(self._table, np.uint32)[at[inside]] = order[inside] + 1
        for place in order[~inside].tolist():  # around the end: a handful
            spot = 0
            while self._table[spot]:
                spot += 1
            self._table[spot] = place + 1
