"""The fetcher: a process that fetches, decodes, verifies and writes chunks into slots.

It runs in a process of its own (fetcher_process.py) so that Python code that fetches never delays a
hit, and so that a store that hangs hangs nobody else. Concurrency: any thread, a job in each.

No byte enters a slot that was not checked against its chunk id first.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cachefs.codec.frame import decode_frame
from cachefs.errors import (
    CacheError,
    CachefsError,
    CorruptError,
    FormatError,
    ObjectMissingError,
    StoreRefusedError,
    StoreUnavailableError,
)
from cachefs.index.manifest_table import write_table
from cachefs.model.chunk import chunk_id
from cachefs.model.image import Image
from cachefs.model.manifest import Manifest
from cachefs.store.s3_settings import S3Settings
from cachefs.store.store import Store, open_store
from cachefs.tiers.breaker import Breaker, State
from cachefs.tiers.jobs import (
    KEPT,
    Answer,
    ChunkJob,
    ChunksDone,
    ChunksLanded,
    DemoteJob,
    Done,
    Failed,
    Fetched,
    Job,
    Listing,
    ListJob,
    ModelFound,
    ModelJob,
    Outcome,
    ProfileFound,
    ProfileJob,
    TableJob,
    Wanted,
)
from cachefs.tiers.l2.l2 import L2
from cachefs.tiers.landing import Landing, Plain, SlotWriter
from cachefs.tiers.models import share_model
from cachefs.tiers.profiles import is_profile, profile_key_in_l2, share_profile
from cachefs.tiers.ranges import MOST_GAP_AHEAD, Range, plan_ranges
from cachefs.tiers.request_cost import local_cost, s3_cost
from cachefs.units import MIB

logger = logging.getLogger(__name__)

_OUTAGE_S = 1.0
"""After so long a request that fails ends its job."""
_BREAKER_FAILURES, _BREAKER_PAUSE_S, _BREAKER_LONGEST_PAUSE_S = 3, 0.1, 1.0
"""Shorter than the pauses of the stack, which asks again anyway: so most of its tries find a probe
due, and the end of an outage is seen with the next one."""
_NEWS_BYTES = MIB
"""A reader waits for so much at most; a message for less would cost more than the wait."""

_NOT_TRIED = Fetched(Outcome.UNAVAILABLE)
_IN_NO_STORE = Fetched(Outcome.MISSING, message="it is in no store, and L2 does not have it")
"""Of a chunk that was never in a pack: one of a program's own values (cachefs.api)."""


class _LeftAloneError(StoreUnavailableError):
    """The store was not asked: it has failed before, and the next probe is not due."""


class Fetcher:
    """Does jobs against one store."""

    def __init__(
        self,
        store_url: str,
        store_identity: str,
        s3: S3Settings | None = None,
        l2: L2 | None = None,
    ) -> None:
        self._url = store_url
        self._l2 = l2
        self._identity = store_identity
        self._s3 = s3
        self._opening = threading.Lock()
        self._cost = s3_cost() if s3 else local_cost()
        self._costing = threading.Lock()
        self._store: Store | None = None
        self._writer = SlotWriter()
        self._breaker = Breaker(_BREAKER_FAILURES, _BREAKER_PAUSE_S, _BREAKER_LONGEST_PAUSE_S)
        self._outage = ""
        self.tell: Callable[[ChunksLanded], None] | None = None
        """Told of chunks of jobs ahead that have landed, from the thread that does the job."""

    def answer(self, job: Job) -> Answer:
        """Return the answer to a job; a failure is an answer as well."""
        try:
            if isinstance(job, ChunkJob):
                if self._l2 is not None:
                    return self._l2.fetch(job, self._land_frame, self._fetch)
                return self._fetch(job)
            if isinstance(job, DemoteJob):
                if self._l2 is not None:
                    self._l2.demote(job.leaving)
                return Done(job.number, None)
            if isinstance(job, TableJob):
                self._write_table(self._open().manifest(job.manifest_id), job.paths)
                self._breaker.forgive()
                return Done(job.number, None)
            if isinstance(job, ProfileJob):
                return ProfileFound(job.number, self._profile(job))
            if isinstance(job, ModelJob):
                shared = share_model(self._open(), job.slot_bytes, job.model)
                return ModelFound(job.number, shared.data, shared.problem)
            listing = self._list(job)
            self._breaker.forgive()
            return Done(job.number, listing)
        except CachefsError as error:
            return Failed(job.number, error)

    def _open(self) -> Store:
        """Open the store when it is first needed: it may be away while we start."""
        if self._store is None:
            with self._opening:
                if self._store is None:
                    self._store = self._opened()
        return self._store

    def _opened(self) -> Store:
        store = open_store(self._url, self._s3)
        if store.identity != self._identity:
            raise FormatError(f"{self._url} is now another store than the one that was mounted")
        return store

    def _fetch(self, job: ChunkJob) -> ChunksDone:
        fetched = [_NOT_TRIED if wanted.pack else _IN_NO_STORE for wanted in job.wanted]
        with self._costing:
            limits = self._cost.limits()
        gap_bytes = min(limits.gap_bytes, MOST_GAP_AHEAD) if job.is_ahead else limits.gap_bytes
        all_ranges = plan_ranges(job.wanted, gap_bytes, limits.range_bytes)
        ranges = [one for one in all_ranges if one.pack]
        frame_bytes = bypassed = 0
        give_up_s = time.monotonic() + _OUTAGE_S
        for asked, planned in enumerate(ranges, 1):
            try:
                data = self._read(planned)
            except CachefsError as error:
                failure = _failure(error)
                bypassed += isinstance(error, _LeftAloneError)
                for member in planned.members:
                    # A neighbour that cannot be read must not fail the others of its range.
                    alone = len(planned.members) == 1 or failure.outcome is Outcome.UNAVAILABLE
                    fetched[member] = failure if alone else self._fetch_alone(job.wanted[member])
                if failure.outcome is Outcome.UNAVAILABLE and time.monotonic() > give_up_s:
                    rest = [failure if one is _NOT_TRIED else one for one in fetched]
                    # Where the store hangs, each further request would be a timeout.
                    requests = asked - bypassed
                    return ChunksDone(job.number, tuple(rest), requests, frame_bytes, bypassed)
                continue
            frame_bytes += len(data)
            if self._l2 is not None:
                for member in planned.members:
                    wanted = job.wanted[member]
                    at = wanted.offset - planned.offset
                    self._l2.offer(wanted, data[at : at + wanted.frame_bytes])
            self._land(job.wanted, planned, data, fetched, self._news(job))
        requests = len(ranges) - bypassed
        return ChunksDone(job.number, tuple(fetched), requests, frame_bytes, bypassed)

    def _read(self, planned: Range) -> memoryview:
        """Ask for a range, and note what that costs: it plans the next ones."""
        is_opened = self._store is not None
        begun_s = time.perf_counter()
        data = self._frames(planned.pack, planned.offset, planned.size_bytes)
        duration_s = time.perf_counter() - begun_s
        if is_opened:  # else it was more than this request
            with self._costing:
                self._cost.observe(planned.size_bytes, duration_s)
        return memoryview(data)

    def _frames(self, pack: bytes, offset: int, size_bytes: int) -> bytes:
        """Ask the store, unless it has failed some times in a row and no probe is due."""
        if self._breaker.state is not State.CLOSED and not self._breaker.allows_probe():
            raise _LeftAloneError(self._outage)
        try:
            data = self._open().frames(pack, offset, size_bytes)
        except StoreUnavailableError as error:
            self._outage = str(error)
            self._breaker.failed()
            raise
        except CachefsError:
            self._breaker.succeeded()  # it has answered
            raise
        self._breaker.succeeded()
        return data

    def _fetch_alone(self, wanted: Wanted) -> Fetched:
        try:
            data = self._frames(wanted.pack, wanted.offset, wanted.frame_bytes)
        except CachefsError as error:
            return _failure(error)
        if self._l2 is not None:
            self._l2.offer(wanted, memoryview(data))
        return self._land_frame(wanted, memoryview(data))

    def _land_frame(self, wanted: Wanted, frame: memoryview) -> Fetched:
        """Land one frame, wherever it comes from."""
        fetched = [Fetched(Outcome.UNAVAILABLE)]
        alone = Range(wanted.pack, wanted.offset, len(frame), [0])
        # In L2 it may have another codec than in its pack, and so another length.
        self._land([wanted._replace(frame_bytes=len(frame))], alone, frame, fetched)
        return fetched[0]

    def _news(self, job: ChunkJob) -> _News | None:
        """Return who tells of chunks before the job is done; only a job ahead is that long."""
        return _News(job.number, self.tell) if job.is_ahead and self.tell else None

    def _land(
        self,
        wanted: Sequence[Wanted],
        planned: Range,
        data: memoryview,
        fetched: list[Fetched],
        news: _News | None = None,
    ) -> None:
        """Bring the chunks of a range into their slots, and say in `fetched` how each went."""

        def written(member: int, plain: Plain, error: OSError | None) -> None:
            if error is None:
                fetched[member] = KEPT
                if news is not None:
                    news.add(member, len(plain))
            else:
                message = f"cannot write to L1: {error.strerror}"
                fetched[member] = Fetched(Outcome.UNKEPT, bytes(plain), message)

        landing = Landing(self._writer, written)
        for member in planned.members:
            one = wanted[member]
            at = one.offset - planned.offset
            try:
                plain = _verified(one, data[at : at + one.frame_bytes])
            except (CorruptError, FormatError) as error:
                fetched[member] = Fetched(Outcome.CORRUPT, message=self._blame(one, str(error)))
                continue
            if one.segment:
                landing.add(member, one, plain)
            else:
                fetched[member] = Fetched(Outcome.UNKEPT, bytes(plain))
        landing.flush()

    def _write_table(self, manifest: Manifest, paths: Sequence[str]) -> None:
        """Write a local table; a full cache disk must not keep an image from its guest."""
        for number, path in enumerate(paths, 1):
            try:
                write_table(manifest, Path(path))
                return
            except CacheError as error:
                if number == len(paths):
                    raise
                logger.warning("%s; using another folder", error)

    def _profile(self, job: ProfileJob) -> bytes | None:
        """Return the profile of an image: from L2 if nothing is added to it, else from the store.

        What is in the store is what all hosts have learned; L2 has a copy, which may be older.
        """
        key = profile_key_in_l2(self._identity, job.name)
        if self._l2 is not None and not job.run:
            copy = self._l2.value(key)
            if copy is not None and is_profile(copy):
                return copy
        data = share_profile(self._open(), job.name, job.run)
        if self._l2 is not None and data is not None:
            self._l2.keep_value(key, data)
        return data

    def _list(self, job: ListJob) -> Listing:
        store = self._open()
        etags: dict[str, str] = {}
        images: dict[str, Image] = {}
        broken: dict[str, str] = {}
        for entry in store.images():
            etags[entry.name] = entry.etag
            if job.known.get(entry.name) == entry.etag:
                continue
            try:
                images[entry.name], etags[entry.name] = store.image(entry.name)
            except StoreUnavailableError:
                raise
            except CachefsError as error:
                broken[entry.name] = str(error)
        return Listing(etags, images, broken)

    def _blame(self, wanted: Wanted, why: str) -> str:
        return (
            f"chunk {wanted.chunk_id.hex()[:16]} in pack {wanted.pack.hex()[:16]} of {self._url} "
            f"is corrupt: {why}"
        )


class _News:
    """Tells of the chunks of one job as they land, some at a time."""

    def __init__(self, number: int, tell: Callable[[ChunksLanded], None]) -> None:
        self._number = number
        self._tell = tell
        self._members: list[int] = []
        self._bytes = 0

    def add(self, member: int, size_bytes: int) -> None:
        self._members.append(member)
        self._bytes += size_bytes
        if self._bytes >= _NEWS_BYTES:
            self._tell(ChunksLanded(self._number, tuple(self._members)))
            self._members, self._bytes = [], 0


def _verified(wanted: Wanted, frame: memoryview) -> Plain:
    """Return the plain bytes of a frame; only from here may they go into a slot."""
    plain = decode_frame(frame, wanted.plain_bytes)
    if chunk_id(plain) != wanted.chunk_id:
        raise CorruptError("the content differs")
    return plain


def _failure(error: CachefsError) -> Fetched:
    if isinstance(error, ObjectMissingError):
        return Fetched(Outcome.MISSING, message=str(error))
    if isinstance(error, CorruptError):
        return Fetched(Outcome.CORRUPT, message=str(error))
    if isinstance(error, StoreRefusedError):
        return Fetched(Outcome.REFUSED, message=str(error))
    return Fetched(Outcome.UNAVAILABLE, message=str(error))
