"""When places were last used, and how often regions of 16 chunks are: in tables by hash.

A model learns from the neighbours of a chunk, whether or not they are in L1.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cachefs.policy.evict.ml.rows import Times, hashed, runs

_LEAST = 4096
_REGION_BITS = 20
_REGIONS = np.uint64(1 << 50)
"""Their hashes are not to be those of places."""

Where = npt.NDArray[np.int64]


class Places:
    """20 bytes an entry, two to four for each slot."""

    def __init__(self) -> None:
        self._used = np.zeros(_LEAST, np.int64)
        self._region_used = np.zeros(_LEAST, np.int64)
        self._region_long = np.zeros(_LEAST, np.float32)
        self._long = 512.0
        self.last = 0
        """The place that was used last."""

    def grow(self, slots: int) -> None:
        """There are so many slots."""
        self._long = max(512.0, slots * 8.0)
        times = max(_LEAST, 2 << (slots - 1).bit_length()) // len(self._used)
        if times > 1:  # an entry is right at each of the places that it may have now
            self._used = np.tile(self._used, times)
            self._region_used = np.tile(self._region_used, times)
            self._region_long = np.tile(self._region_long, times)

    def used(self, place: Where, times: Times) -> None:
        """These were used, in this order."""
        self.last = int(place[-1])
        self._used[self._at(place)] = times
        regions, _, _, counts = runs(self._region(place))
        gone = times[-1] - self._region_used[regions]
        decayed = self._region_long[regions] * np.exp2(-gone / self._long)
        self._region_long[regions] = decayed + counts
        self._region_used[regions] = times[-1]

    def when(self, place: Where) -> Times:
        """Return when places were last used, 0 if never."""
        return np.asarray(self._used[self._at(place)])

    def region(self, place: Where, now: int) -> tuple[Times, npt.NDArray[np.float32]]:
        """Return how long ago the region of each place was used, and how often it is."""
        at = self._region(place)
        since = now - self._region_used[at]
        return since, self._region_long[at] * np.exp2(-since / self._long).astype(np.float32)

    def _at(self, place: Where) -> Where:
        return hashed(place.astype(np.uint64)) & (len(self._used) - 1)

    def _region(self, place: Where) -> Where:
        return hashed((place >> _REGION_BITS).astype(np.uint64) + _REGIONS) & (len(self._used) - 1)
