"""What is remembered of chunks that were given up, by key, in a table that forgets by overwriting.

15 bytes an entry, three for four slots, and 1 MB at least: where L1 is small, what was there a long
time ago is still known when it comes back. An entry has 16 bits of its key: one of 65,536 chunks
that come in is taken for another.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cachefs.policy.evict.ml.clock import NEVER, Sweep
from cachefs.policy.evict.ml.rows import ROW, Rows, hashed
from cachefs.policy.evict.ml.table import Table

_LEAST = 1 << 16
_KEPT = ("last", "gaps", "short", "long", "uses")
_TAG_BITS = 16


class Past:
    """Rows of chunks that are gone."""

    def __init__(self) -> None:
        fields = ROW.fields
        assert fields is not None
        kept = [(name, fields[name][0]) for name in _KEPT]
        self._table = Table(_LEAST, np.dtype([("tag", np.uint16), *kept]))
        self._sweep = Sweep()

    def grow(self, slots: int) -> None:
        """There are so many slots."""
        self._table.grow(slots - slots // 4)

    def remember(self, rows: Rows) -> None:
        """Chunks are given up."""
        rows = rows[rows["key"] != 0]
        at, tags = self._at(rows["key"])
        entries = np.empty(len(rows), self._table.rows.dtype)
        entries["tag"] = tags
        for name in _KEPT:
            entries[name] = rows[name]
        self._table.rows[at] = entries

    def recall(self, rows: Rows) -> None:
        """Fill in what is known of chunks that came in."""
        at, tags = self._at(rows["key"])
        entries = self._table.rows[at]
        is_known = (entries["tag"] == tags) & (entries["last"] != NEVER) & (rows["key"] != 0)
        for name in _KEPT:
            rows[name][is_known] = entries[name][is_known]

    def sweep(self, now: int) -> None:
        """Keep times from coming round again."""
        self._sweep.turn(now, self._table.rows["last"])

    def _at(
        self, keys: npt.NDArray[np.uint64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint16]]:
        hashes = hashed(keys)
        return self._table.at(hashes), (hashes >> 44 - _TAG_BITS).astype(np.uint16)
