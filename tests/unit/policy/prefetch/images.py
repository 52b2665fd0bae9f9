"""An image for arms, with no table behind it."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cachefs.policy.prefetch.seam import Access, Keys
from cachefs.units import KIB

CHUNK = 64 * KIB


@dataclass(eq=False)
class Bare:
    """An image of different chunks."""

    chunks: int
    chunk_bytes: int = CHUNK

    def keys(self, first: int, count: int) -> Keys:
        return np.arange(first + 1, first + count + 1, dtype=np.uint64)

    def find(self, keys: Keys) -> npt.NDArray[np.int64]:
        places = keys.astype(np.int64) - 1
        return np.where(places < self.chunks, places, -1)


def read(
    offset: int, size_bytes: int, time_s: float = 0.0, reader: int = 1, chunk_bytes: int = CHUNK
) -> Access:
    """Return the access that a read of bytes is."""
    first = offset // chunk_bytes
    count = (offset + size_bytes - 1) // chunk_bytes - first + 1
    return Access(time_s, reader, first, count, True, offset, size_bytes)
