"""The fetcher: a process that fetches, decodes, verifies and writes chunks into slots.

It is a process of its own so that Python code that fetches never delays a hit, and so that a store
that hangs hangs nobody else. It begins jobs in the order they come: one at a time for a local
store, several for S3, where most of a job is waiting.

No byte enters a slot that was not checked against its chunk id first.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import pickle
import signal
import socket
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
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
from cachefs.tiers.jobs import (
    LENGTH,
    Answer,
    ChunkJob,
    ChunksDone,
    Done,
    Failed,
    Fetched,
    Job,
    Listing,
    ListJob,
    Outcome,
    TableJob,
    Wanted,
    encode,
)
from cachefs.tiers.ranges import Range, plan_ranges
from cachefs.tiers.request_cost import local_cost, s3_cost

logger = logging.getLogger(__name__)
_PR_SET_PDEATHSIG = 1

_OUTAGE_S = 1.0
"""After so long a request that fails ends its job."""
_NOT_TRIED = Fetched(Outcome.UNAVAILABLE)


class Fetcher:
    """Does jobs against one store."""

    def __init__(self, store_url: str, store_identity: str, s3: S3Settings | None = None) -> None:
        self._url = store_url
        self._identity = store_identity
        self._s3 = s3
        self._opening = threading.Lock()
        self._cost = s3_cost() if s3 else local_cost()
        self._costing = threading.Lock()
        self._store: Store | None = None
        self._segments: OrderedDict[str, int] = OrderedDict()

    def answer(self, job: Job) -> Answer:
        """Return the answer to a job; a failure is an answer as well."""
        try:
            if isinstance(job, ChunkJob):
                return self._fetch(job)
            if isinstance(job, TableJob):
                self._write_table(self._open().manifest(job.manifest_id), job.paths)
                return Done(job.number, None)
            return Done(job.number, self._list(job))
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
        fetched: list[Fetched] = [_NOT_TRIED] * len(job.wanted)
        with self._costing:
            limits = self._cost.limits()
        ranges = plan_ranges(job.wanted, limits.gap_bytes, limits.range_bytes)
        frame_bytes = 0
        give_up_s = time.monotonic() + _OUTAGE_S
        for planned in ranges:
            try:
                data = self._read(planned)
            except CachefsError as error:
                failure = _failure(error)
                for member in planned.members:
                    # A neighbour that cannot be read must not fail the others of its range.
                    alone = len(planned.members) == 1 or failure.outcome is Outcome.UNAVAILABLE
                    fetched[member] = failure if alone else self._fetch_alone(job.wanted[member])
                if failure.outcome is Outcome.UNAVAILABLE and time.monotonic() > give_up_s:
                    return self._given_up(job, fetched, failure)
                continue
            frame_bytes += len(data)
            for member in planned.members:
                wanted = job.wanted[member]
                at = wanted.offset - planned.offset
                fetched[member] = self._land(wanted, data[at : at + wanted.frame_bytes])
        return ChunksDone(job.number, tuple(fetched), len(ranges), frame_bytes)

    def _read(self, planned: Range) -> memoryview:
        """Ask for a range, and note what that costs: it plans the next ones."""
        store = self._open()
        begun_s = time.perf_counter()
        data = store.frames(planned.pack, planned.offset, planned.size_bytes)
        duration_s = time.perf_counter() - begun_s
        with self._costing:
            self._cost.observe(planned.size_bytes, duration_s)
        return memoryview(data)

    def _given_up(self, job: ChunkJob, fetched: list[Fetched], failure: Fetched) -> ChunksDone:
        """Answer without asking for the rest: where the store hangs, each request is a timeout."""
        rest = [failure if one is _NOT_TRIED else one for one in fetched]
        return ChunksDone(job.number, tuple(rest), 0, 0)

    def _fetch_alone(self, wanted: Wanted) -> Fetched:
        try:
            data = self._open().frames(wanted.pack, wanted.offset, wanted.frame_bytes)
        except CachefsError as error:
            return _failure(error)
        return self._land(wanted, memoryview(data))

    def _land(self, wanted: Wanted, frame: memoryview) -> Fetched:
        try:
            plain = decode_frame(frame, wanted.plain_bytes)
        except (CorruptError, FormatError) as error:
            return Fetched(Outcome.CORRUPT, message=self._blame(wanted, str(error)))
        if chunk_id(plain) != wanted.chunk_id:
            return Fetched(Outcome.CORRUPT, message=self._blame(wanted, "the content differs"))
        if not wanted.segment:
            return Fetched(Outcome.UNKEPT, bytes(plain))
        try:
            self._write(wanted, plain)
        except OSError as error:
            return Fetched(Outcome.UNKEPT, bytes(plain), f"cannot write to L1: {error.strerror}")
        return Fetched(Outcome.KEPT)

    def _write(self, wanted: Wanted, plain: bytes | memoryview) -> None:
        fd = self._segments.get(wanted.segment)
        if fd is None:
            with self._opening:
                fd = self._segments.get(wanted.segment)
                if fd is None:
                    fd = os.open(wanted.segment, os.O_WRONLY | os.O_CLOEXEC)
                    self._segments[wanted.segment] = fd
        written = os.pwrite(fd, plain, wanted.position)
        while written < len(plain):
            more = os.pwrite(fd, memoryview(plain)[written:], wanted.position + written)
            if not more:
                raise OSError(5, "the disk takes no more")
            written += more

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


def _failure(error: CachefsError) -> Fetched:
    if isinstance(error, ObjectMissingError):
        return Fetched(Outcome.MISSING, message=str(error))
    if isinstance(error, CorruptError):
        return Fetched(Outcome.CORRUPT, message=str(error))
    if isinstance(error, StoreRefusedError):
        return Fetched(Outcome.REFUSED, message=str(error))
    return Fetched(Outcome.UNAVAILABLE, message=str(error))


def _receive(connection: socket.socket) -> Job | None:
    header = _receive_exactly(connection, LENGTH.size)
    if header is None:
        return None
    data = _receive_exactly(connection, LENGTH.unpack(header)[0])
    if data is None:
        return None
    job: Job = pickle.loads(data)
    return job


def _receive_exactly(connection: socket.socket, size_bytes: int) -> bytes | None:
    data = connection.recv(size_bytes, socket.MSG_WAITALL)
    return data if len(data) == size_bytes else None


def die_with_parent(parent_pid: int) -> None:
    """Ask the kernel to end this process with its parent; exit if that has ended already."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        sys.exit(1)


def main() -> None:
    """Run a fetcher: `fetcher SOCKET_FD PARENT_PID STORE_URL STORE_IDENTITY [S3_SETTINGS]`."""
    fd, parent_pid, url, identity = sys.argv[1:5]
    s3 = S3Settings(**json.loads(sys.argv[5])) if sys.argv[5:] else None
    die_with_parent(int(parent_pid))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C at the terminal is the supervisor's
    logging.basicConfig(level=logging.WARNING, format="fetcher: %(message)s")
    fetcher = Fetcher(url, identity, s3)
    with socket.socket(fileno=int(fd)) as connection:
        if s3 is None:
            while (job := _receive(connection)) is not None:
                connection.sendall(encode(fetcher.answer(job)))
        else:
            _serve_in_threads(fetcher, connection, s3.requests_in_flight)


def _serve_in_threads(fetcher: Fetcher, connection: socket.socket, threads: int) -> None:
    sending = threading.Lock()

    def answer(job: Job) -> None:
        try:
            message = encode(fetcher.answer(job))
            with sending:
                connection.sendall(message)
        except BaseException:
            logger.exception("this fetcher ends")
            os._exit(1)  # its jobs go to another

    pool = ThreadPoolExecutor(threads, "job")
    while (job := _receive(connection)) is not None:
        pool.submit(answer, job)
    os._exit(0)  # nobody waits for what is still under way


if __name__ == "__main__":
    main()
