"""What is remembered of chunks that were given up, by key, in a table that forgets by overwriting.

32 bytes an entry, one to two for each slot, and 2 MB at least: where L1 is small, what was there a
long time ago is still known when it comes back.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cachefs.policy.evict.ml.rows import ROW, Rows, hashed

_LEAST = 1 << 16
_KEPT = ("key", "last", "gaps", "short", "long", "uses")


class Past:
    """Rows of chunks that are gone."""

    def __init__(self) -> None:
        fields = ROW.fields
        assert fields is not None
        self._table = np.zeros(_LEAST, np.dtype([(name, fields[name][0]) for name in _KEPT]))

    def grow(self, slots: int) -> None:
        """There are so many slots: remember as many chunks at least."""
        wanted = max(_LEAST, 1 << (slots - 1).bit_length())
        if wanted > len(self._table):
            known = self._table[self._table["key"] != 0]
            self._table = np.zeros(wanted, self._table.dtype)
            self._table[self._at(known["key"])] = known

    def remember(self, rows: Rows) -> None:
        """Chunks are given up."""
        rows = rows[rows["key"] != 0]
        at = self._at(rows["key"])
        for name in _KEPT:
            self._table[name][at] = rows[name]

    def recall(self, rows: Rows) -> None:
        """Fill in what is known of chunks that came in."""
        at = self._at(rows["key"])
        known = (self._table["key"][at] == rows["key"]) & (rows["key"] != 0)
        for name in _KEPT:
            rows[name][known] = self._table[name][at[known]]

    def _at(self, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        return hashed(keys) & (len(self._table) - 1)
