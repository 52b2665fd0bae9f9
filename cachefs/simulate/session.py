"""One recording in chunks, played with arms under a virtual clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cachefs.errors import UsageError
from cachefs.policy.evict.names import make_policy
from cachefs.policy.evict.order import Ticks
from cachefs.policy.prefetch.arms import learners
from cachefs.policy.prefetch.learner import Rows
from cachefs.policy.prefetch.seam import Access, Arm
from cachefs.simulate.accesses import Numbers, Requests
from cachefs.simulate.ahead import Link, Recorded, Replay, Result

_MOST_CHUNKS = 1 << 28
"""Of an image: its keys take 8 bytes each."""


@dataclass(frozen=True)
class Trace:
    """A recording in chunks. All columns are (requests,)."""

    name: str
    chunk_bytes: int
    first: Numbers
    count: Numbers
    time_s: npt.NDArray[np.float64]
    offset: Numbers
    size: Numbers

    @property
    def chunks(self) -> int:
        """How large the image is."""
        return int((self.first + self.count).max())

    @property
    def distinct(self) -> int:
        """How many chunks are touched."""
        touched = np.zeros(self.chunks + 1, np.int64)
        np.add.at(touched, self.first, 1)
        np.add.at(touched, self.first + self.count, -1)
        return int((touched.cumsum() > 0).sum())

    def reads(self) -> list[Access]:
        """Return the requests as the arms see them, all of them hits."""
        columns = self.time_s, self.first, self.count, self.offset, self.size
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return [Access(t, 0, f, c, True, o, s) for t, f, c, o, s in rows]


def trace_of(requests: Requests, chunk_bytes: int, limit: int | None = None) -> Trace:
    """Return the first `limit` requests of a recording in chunks of that size.

    Raises:
        UsageError: it is of objects, which lie nowhere, or of an image that is too large.
    """
    if requests.are_objects:
        raise UsageError(f"{requests.name} has objects and no offsets: nothing lies beside another")
    offset = requests.offset_bytes[:limit]
    size = np.maximum(requests.length_bytes[:limit], 1)
    if int((offset + size).max()) // chunk_bytes >= _MOST_CHUNKS:
        raise UsageError(f"{requests.name} has too many chunks: take larger ones")
    first = offset // chunk_bytes
    count = (offset + size - 1) // chunk_bytes - first + 1
    time_s = (requests.time_us[: len(first)] - requests.time_us[0]) / 1e6
    return Trace(requests.name, chunk_bytes, first, count, time_s, offset, size)


def play(
    trace: Trace,
    image: Recorded,
    slots: int,
    arms: Sequence[Arm],
    link: Link | None = None,
    known: Mapping[str, Rows] | None = None,
    policy: str = "lru",
    *,
    keeps_served: bool = False,
) -> tuple[Replay, dict[str, Rows]]:
    """Play a recording; returns the replay, and what the arms know afterwards."""
    replay = Replay(image, slots, make_policy(policy, Ticks()), arms, link)
    if keeps_served:
        replay.served = []
    learning = learners(arms)
    for arm in learning:
        if known and arm.name in known:
            arm.taught(image, known[arm.name])
    replay.open()
    before_s = 0.0
    columns = trace.time_s, trace.first, trace.count, trace.offset, trace.size
    rows = zip(*(column.tolist() for column in columns), strict=True)
    for time_s, first, count, offset, size in rows:
        replay.now_s += max(0.0, time_s - before_s)  # a guest that waited does all else later
        before_s = time_s
        replay.read(first, count, offset, size)
    learned = {
        arm.name: known_now for arm in learning if (known_now := arm.learned(image)) is not None
    }
    replay.close()
    return replay, learned


def coverage(result: Result, plain: Result) -> float:
    """Return misses avoided / misses without anything fetched ahead."""
    return (plain.misses - result.misses) / plain.misses if plain.misses else 0.0
