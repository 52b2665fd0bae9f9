"""When places were last used, and how often regions of 16 chunks are: in tables by hash.

A model learns from the neighbours of a chunk, whether or not they are in L1. An entry of a place
has 8 bits of its hash: a neighbour that was overwritten is not known, and seldom taken for another.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cachefs.policy.evict.ml.clock import NEVER, Stamps, Sweep, since, stamp_of, stamps_of
from cachefs.policy.evict.ml.rows import MOST_OFTEN, Times, hashed, runs
from cachefs.policy.evict.ml.table import Table

_LEAST = 4096
_REGION_BITS = 20
_TAG_BITS = 8

_PLACE = np.dtype([("tag", np.uint8), ("last", np.uint32)])
_REGION = np.dtype([("last", np.uint32), ("often", np.float16)])

Where = npt.NDArray[np.int64]


class Places:
    """An entry of 5 bytes for each slot, and one of 6 for each four."""

    def __init__(self) -> None:
        self._places = Table(_LEAST, _PLACE)
        self._regions = Table(_LEAST, _REGION)
        self._sweeps = (Sweep(), Sweep())
        self._long = 512.0
        self.last = 0
        """The place that was used last."""

    def grow(self, slots: int) -> None:
        """There are so many slots."""
        self._long = max(512.0, slots * 8.0)
        self._places.grow(slots)
        self._regions.grow(slots // 4)

    def used(self, place: Where, times: Times) -> None:
        """These were used, in this order."""
        self.last = int(place[-1])
        at, tags = self._at(place)
        entries = np.empty(len(place), _PLACE)
        entries["tag"], entries["last"] = tags, stamps_of(times)
        self._places.rows[at] = entries
        regions, _, _, counts = runs(self._region(place))
        known = self._regions.rows[regions]
        decayed = _decayed(known, since(times[-1], known["last"]), self._long)
        known["often"] = np.minimum(decayed + counts, MOST_OFTEN)
        known["last"] = stamp_of(int(times[-1]))
        self._regions.rows[regions] = known

    def last_used(self, place: Where) -> Stamps:
        """Return when places were last used, NEVER if that is not known."""
        at, tags = self._at(place)
        entries = self._places.rows[at]
        return np.where(entries["tag"] == tags, entries["last"], np.uint32(NEVER))

    def region(self, place: Where, now: int) -> tuple[Times, npt.NDArray[np.float32]]:
        """Return how long ago the region of each place was used, and how often it is."""
        known = self._regions.rows[self._region(place)]
        ago = np.where(known["last"] == NEVER, now, since(now, known["last"]))
        return ago, _decayed(known, ago, self._long)

    def sweep(self, now: int) -> None:
        """Keep times from coming round again."""
        for sweep, table in zip(self._sweeps, (self._places, self._regions), strict=True):
            sweep.turn(now, table.rows["last"])

    def _at(self, place: Where) -> tuple[Where, npt.NDArray[np.uint8]]:
        hashes = hashed(place.astype(np.uint64))
        return self._places.at(hashes), (hashes >> 44 - _TAG_BITS).astype(np.uint8)

    def _region(self, place: Where) -> Where:
        return self._regions.at(hashed((place >> _REGION_BITS).astype(np.uint64)))


def _decayed(known: npt.NDArray[np.void], ago: Times, half_life: float) -> npt.NDArray[np.float32]:
    return known["often"] * np.exp2(-np.maximum(ago, 0) / half_life).astype(np.float32)
