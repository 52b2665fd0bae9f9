"""What the daemon and a fetcher say to each other: pickled values, a length before each.

Both ends are the same program on a private socket pair, so pickle is safe here.
"""

from __future__ import annotations

import pickle
import struct
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

from cachefs.model.image import Image

LENGTH = struct.Struct("<I")


class Outcome(Enum):
    """How the fetch of one chunk ended."""

    KEPT = "kept"
    """Verified and written into its slot."""
    UNKEPT = "unkept"
    """Verified, but not in a slot: the answer carries the bytes."""
    MISSING = "missing"
    CORRUPT = "corrupt"
    UNAVAILABLE = "unavailable"
    REFUSED = "refused"
    """The store answered that we may not: no outage, so nobody waits for its end."""


class Wanted(NamedTuple):
    """One chunk to fetch. `segment` is the file to write it to at `position`; empty: to none."""

    chunk_id: bytes
    plain_bytes: int
    pack: bytes
    offset: int
    frame_bytes: int
    segment: str
    position: int
    is_scan: bool = False
    """Part of a long sequential run: not for L2."""


class Fetched(NamedTuple):
    """How it went. `plain` has the bytes of an UNKEPT chunk, `message` the cause of a failure."""

    outcome: Outcome
    plain: bytes = b""
    message: str = ""
    from_l2: bool = False


KEPT = Fetched(Outcome.KEPT)
"""The usual outcome. One value for all, so that pickle writes it once an answer."""


@dataclass(frozen=True, slots=True)
class ChunkJob:
    """Fetch these chunks; the answer has their outcomes in the same order.

    `is_ahead`: nobody waits for them yet, so a fetcher does other jobs first.
    """

    number: int
    wanted: tuple[Wanted, ...]
    is_ahead: bool = False

    def __reduce__(self) -> tuple[object, ...]:
        """Travel as plain tuples: that takes half of the time."""
        return _chunk_job, (self.number, tuple(map(tuple, self.wanted)), self.is_ahead)


@dataclass(frozen=True, slots=True)
class ChunksDone:
    """The answer to a ChunkJob. `requests` and `frame_bytes` are what it cost at the store.

    `bypassed`: requests that were not made, because the store had failed before.
    """

    number: int
    fetched: tuple[Fetched, ...]
    requests: int
    frame_bytes: int
    bypassed: int = 0


@dataclass(frozen=True, slots=True)
class ChunksLanded:
    """Of a ChunkJob that is not done yet: these of its chunks, by their numbers in it, are KEPT."""

    number: int
    members: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TableJob:
    """Fetch a manifest and write it as a local table to the first of `paths` that takes it."""

    number: int
    manifest_id: str
    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ListJob:
    """List the images; `known` has the etags of the records that need not be read again."""

    number: int
    known: dict[str, str]


@dataclass(frozen=True, slots=True)
class Listing:
    """The answer to a ListJob: etags of all images, and the records that are new or changed.

    `broken` has the images whose records cannot be understood, and why.
    """

    etags: dict[str, str]
    images: dict[str, Image]
    broken: dict[str, str]


class Leaving(NamedTuple):
    """A chunk that L1 gives up; its bytes lie in the slot until that is filled again."""

    chunk_id: bytes
    plain_bytes: int
    segment: str
    position: int


@dataclass(frozen=True, slots=True)
class DemoteJob:
    """See to it that L2 has these chunks, behind the answer."""

    number: int
    leaving: tuple[Leaving, ...]


@dataclass(frozen=True, slots=True)
class ProfileJob:
    """Fetch what hosts have learned of an image; with a `run`, add that to it first."""

    number: int
    name: str
    run: bytes = b""


@dataclass(frozen=True, slots=True)
class ModelJob:
    """Fetch the model that hosts share for slots of a size; with a `model`, share that first."""

    number: int
    slot_bytes: int
    model: bytes = b""


@dataclass(frozen=True, slots=True)
class Done:
    """The answer to a TableJob, a DemoteJob (result None) or a ListJob."""

    number: int
    result: Listing | None


@dataclass(frozen=True, slots=True)
class ProfileFound:
    """The answer to a ProfileJob: what is in the store now."""

    number: int
    data: bytes | None


@dataclass(frozen=True, slots=True)
class ModelFound:
    """The answer to a ModelJob: what is in the store now, checked; and what is wrong there."""

    number: int
    data: bytes | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Failed:
    """A job failed as a whole."""

    number: int
    error: Exception


@dataclass(frozen=True, slots=True)
class L2Report:
    """What a fetcher tells of L2, unasked.

    `counts`: what to add to the metrics of these names. `queued_bytes` and `is_bypassed`: as it is
    now. `error`: of the last failure, empty when all is well. `advice`: for the operator.
    """

    counts: dict[str, int]
    queued_bytes: int
    is_bypassed: bool
    error: str
    advice: str


Job = ChunkJob | TableJob | ListJob | DemoteJob | ProfileJob | ModelJob
Answer = ChunksDone | Done | ProfileFound | ModelFound | Failed


def _chunk_job(number: int, rows: tuple[tuple[Any, ...], ...], is_ahead: bool) -> ChunkJob:
    return ChunkJob(number, tuple(map(Wanted._make, rows)), is_ahead)


Message = Answer | L2Report | ChunksLanded
"""What a fetcher sends."""


def encode(message: Job | Message) -> bytes:
    """Return a message with its length before it."""
    data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return LENGTH.pack(len(data)) + data
