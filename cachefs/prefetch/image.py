"""An open image, as the arms and the plan see it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cachefs.errors import CachefsError
from cachefs.index.manifest_table import ManifestTable
from cachefs.policy.prefetch.budget import Venture
from cachefs.policy.prefetch.plan import Plan
from cachefs.policy.prefetch.recent import Recent
from cachefs.policy.prefetch.seam import Keys

_KEY_BYTES = 8


class OpenImage:
    """An image that somebody has open: its table, and what is planned for it.

    See Image in policy/prefetch/seam.py. `find` reads and sorts the whole table when it is first
    asked, which takes up to a few hundred milliseconds: that is for a thread, and may be twice at
    once.
    """

    def __init__(self, inode: int, table: ManifestTable) -> None:
        self.inode = inode
        self.table = table
        self.chunk_bytes = table.chunk_bytes
        self.chunks = -(-table.size_bytes // table.chunk_bytes)
        self.plan = Plan()
        self.venture = Venture(self.chunk_bytes)
        self.recent = Recent(self.chunks)
        self.handles = 0
        """Opens less closes, as far as this daemon has seen them."""
        self.closed_s: float | None = None
        self.held_until_s = 0.0
        """Nothing of it is fetched ahead until then: see Prefetcher.hold."""
        self._sorted: tuple[Keys, npt.NDArray[np.int64]] | None = None

    def rests(self, now_s: float) -> bool:
        """Return whether nothing of it is to be fetched ahead now."""
        return self.closed_s is not None or now_s < self.held_until_s

    def keys(self, first: int, count: int) -> Keys:
        """See Image."""
        count = max(0, min(count, self.chunks - first))
        found = [self.table.id_at(index)[:_KEY_BYTES] for index in range(first, first + count)]
        return np.frombuffer(b"".join(key or bytes(_KEY_BYTES) for key in found), np.uint64)

    def find(self, keys: Keys) -> npt.NDArray[np.int64]:
        """See Image."""
        if self._sorted is None:
            try:
                whole, chunks = self.table.keys()
            except CachefsError:  # damaged: a read will say, and mend it
                return np.full(len(keys), -1, np.int64)
            order = np.argsort(whole, kind="stable")
            self._sorted = whole[order], chunks[order]
        known, places = self._sorted
        if not len(known):
            return np.full(len(keys), -1, np.int64)
        at = np.minimum(np.searchsorted(known, keys), len(known) - 1)
        return np.where((known[at] == keys) & (keys != 0), places[at], -1)
