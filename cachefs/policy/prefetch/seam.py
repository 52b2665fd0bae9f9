"""The seam that every predictor fills, and what passes through it.

A predictor is an arm: it is told what guests read, in order, and says which chunks it expects to be
read soon. It fetches nothing; budgets, order and what is fetched already are the planner's. An arm
takes its time from the accesses and has no other clock; it is deterministic by its seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.uint64]
"""Content keys of chunks: the first 8 bytes of the chunk id, little-endian; 0 is a zero chunk,
which is never fetched."""


class Access(NamedTuple):
    """One read of a guest: `count` chunks from `first` on."""

    time_s: float
    """On a monotonic clock that all accesses share."""
    reader: int
    """Who reads: equal for the reads of one process of the host (a guest, as a rule)."""
    first: int
    count: int  # type: ignore[assignment] # hides the method of tuple, which nobody needs
    is_hit: bool = True
    """Whether L1 had all of it."""
    offset_bytes: int = -1
    """Where it began, and how long it was, where that is known more precisely than in chunks."""
    size_bytes: int = 0
    reads: int = 1
    """Reads that followed each other without a gap are one access; so many they were."""
    is_backward: bool = False
    """They came from the last to the first."""


class Image(Protocol):
    """An open image (one version), as the arms see it."""

    chunk_bytes: int
    chunks: int

    def keys(self, first: int, count: int) -> Keys:
        """Return the content keys of `count` chunks, (count,)."""
        ...

    def find(self, keys: Keys) -> npt.NDArray[np.int64]:
        """Return where chunks of this content lie, (n,); -1 where the image has none of it."""
        ...


class Wish(NamedTuple):
    """Chunks that an arm expects to be read: `count` from `first` on, in that order."""

    first: int
    count: int  # type: ignore[assignment] # hides the method of tuple, which nobody needs
    confidence: float
    """The arm's own estimate that they are read, 0 to 1."""
    due_s: float = 0.0
    """In how many seconds they are expected to be read; what is due first is fetched first."""
    stream: int = 0
    """What the arm may take back together: with a `count` of 0 it takes back what is left of its
    wishes with the same number. 0: of none. Unique within the arm and the image."""


NOTHING: tuple[Wish, ...] = ()


class Arm(Protocol):
    """A predictor. All calls come from one thread; an image is the same object while it is open."""

    name: str

    def opened(self, image: Image, time_s: float) -> Sequence[Wish]:
        """An image that nobody had open was opened."""
        ...

    def observe(self, image: Image, access: Access) -> Sequence[Wish]:
        """A guest has read."""
        ...

    def judged(self, image: Image, chunk: int, was_used: bool) -> None:
        """A chunk that this arm wished for was fetched ahead, and was used or was not."""
        ...

    def closed(self, image: Image, time_s: float) -> None:
        """Nobody has the image open any more."""
        ...
