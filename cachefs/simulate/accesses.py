"""Accesses: what a recording says, as the policies see it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cachefs.errors import UsageError

Numbers = npt.NDArray[np.int64]

SPAN = 1 << 16
"""Places of neighbouring chunks lie so far apart."""
_MOST_PLACES = 1 << 40
"""A place has 40 bits."""


_MOST_ACCESSES = 500_000_000


@dataclass(frozen=True, slots=True)
class Requests:
    """A recording: one row a request, in the order of time."""

    name: str
    offset_bytes: Numbers
    length_bytes: Numbers
    time_us: npt.NDArray[np.float64]
    """Since any moment; all zeros if the recording does not tell."""
    are_objects: bool = False
    """`offset_bytes` are numbers of whole objects, each of which is a chunk."""

    def __len__(self) -> int:
        return len(self.offset_bytes)


@dataclass(frozen=True, slots=True)
class Accesses:
    """Chunks in the order in which they were wanted, numbered as they first came."""

    name: str
    chunk_bytes: int
    chunks: Numbers
    """(accesses,): each 0 to `distinct` - 1."""
    index: Numbers
    """(distinct,): where each chunk lies, in chunks."""

    @property
    def distinct(self) -> int:
        """How many chunks there are."""
        return len(self.index)

    def __len__(self) -> int:
        return len(self.chunks)


def accesses_of(requests: Requests, chunk_bytes: int) -> Accesses:
    """Return the accesses that requests make: every chunk that one touches, in order.

    Raises:
        UsageError: there are none, or too many for the memory of a simulation.
    """
    if requests.are_objects:
        return numbered(requests.name, requests.offset_bytes, chunk_bytes)
    known = requests.length_bytes > 0
    first = requests.offset_bytes[known] // chunk_bytes
    last = (requests.offset_bytes[known] + requests.length_bytes[known] - 1) // chunk_bytes
    counts = last - first + 1
    total = int(counts.sum())
    if total > _MOST_ACCESSES:
        raise UsageError(f"{requests.name} touches {total} chunks: take larger chunks")
    begins = np.cumsum(counts) - counts
    index = np.repeat(first - begins, counts) + np.arange(total)
    return numbered(requests.name, index, chunk_bytes)


def numbered(name: str, index: Numbers, chunk_bytes: int) -> Accesses:
    """Return accesses to chunks at these indexes.

    Raises:
        UsageError: there are none.
    """
    if not len(index):
        raise UsageError(f"{name} has no accesses")
    places, first, inverse = np.unique(index, return_index=True, return_inverse=True)
    by_age = np.argsort(first, kind="stable")
    rank = np.empty_like(by_age)
    rank[by_age] = np.arange(len(by_age))
    return Accesses(name, chunk_bytes, rank[inverse], places[by_age])


def place_of(index: int) -> int:
    """Return the place that a policy is told for the chunk at an index."""
    return (index + 1) * SPAN % _MOST_PLACES
