"""The process of a fetcher: takes jobs from the daemon's socket, and sends the answers back.

One at a time for a local store; for S3, where most of a job is waiting, in several threads.
"""

from __future__ import annotations

import ctypes
import heapq
import itertools
import json
import logging
import os
import pickle
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from cachefs.errors import CachefsError
from cachefs.store.s3_settings import S3Settings
from cachefs.tiers.fetcher import Fetcher
from cachefs.tiers.in_flight import most_in_flight
from cachefs.tiers.jobs import LENGTH, ChunkJob, Job, Message, encode
from cachefs.tiers.l2.l2 import L2
from cachefs.units import MIB

logger = logging.getLogger(__name__)
_PR_SET_PDEATHSIG = 1


def _receive(connection: socket.socket) -> Job | None:
    header = _receive_exactly(connection, LENGTH.size)
    if header is None:
        return None
    data = _receive_exactly(connection, LENGTH.unpack(header)[0])
    if data is None:
        return None
    job: Job = pickle.loads(data)
    return job


class Inbox:
    """Jobs as they come; those that somebody waits for are handed out first."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._jobs: list[tuple[bool, int, Job]] = []
        self._serial = itertools.count()

    def next(self) -> Job | None:
        """Return the next job, waiting for one; None when the daemon has gone."""
        while not self._jobs or select.select([self._connection], [], [], 0)[0]:
            job = _receive(self._connection)
            if job is None:
                return None
            heapq.heappush(self._jobs, (is_ahead(job), next(self._serial), job))
        return heapq.heappop(self._jobs)[2]


def is_ahead(job: Job) -> bool:
    """Whether nobody waits for a job yet."""
    return isinstance(job, ChunkJob) and job.is_ahead


def _receive_exactly(connection: socket.socket, size_bytes: int) -> bytes | None:
    try:
        data = connection.recv(size_bytes, socket.MSG_WAITALL)
    except ConnectionResetError:  # the daemon was killed, with an answer that it had not read
        return None
    return data if len(data) == size_bytes else None


def die_with_parent(parent_pid: int) -> None:
    """Ask the kernel to end this process with its parent; exit if that has ended already."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        sys.exit(1)


class _Line:
    """The way back to the daemon, for the threads of the fetcher and of its L2."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def send(self, message: Message) -> None:
        with self._lock:
            try:
                self._connection.sendall(encode(message))
            except (BrokenPipeError, ConnectionResetError):
                os._exit(0)  # the daemon was killed: nobody waits for an answer


def _open_l2(settings: str, line: _Line) -> L2 | None:
    """Return a started L2. One that cannot be made is done without: a mount works without it."""
    from cachefs.config import L2Section  # noqa: PLC0415 - pydantic, only where there is an L2
    from cachefs.tiers.l2.build import open_l2  # noqa: PLC0415 - and the server's library

    try:
        l2 = open_l2(L2Section.model_validate_json(settings))
    except (CachefsError, OSError) as error:
        logger.warning("working without L2: %s", error)
        return None
    l2.send = line.send
    l2.start()
    return l2


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_HEAP_BYTES = 32 * MIB
"""The most that glibc takes for a threshold; a job has at most 4 MiB of chunks at a time."""


def keep_freed_memory() -> None:
    """Ask glibc not to give memory back at once.

    Else the buffers of each job are new pages, which the kernel has to clear and to map one by one.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # another libc has its own ways
        mallopt(_M_MMAP_THRESHOLD, _KEPT_HEAP_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_HEAP_BYTES)


def main() -> None:
    """Run a fetcher: `fetcher SOCKET_FD PARENT_PID STORE_URL STORE_IDENTITY S3 L2 PLACES`.

    S3 and L2 are settings in JSON; empty: the store is not on S3, and there is no L2. PLACES: jobs
    that nobody waits for which it does at once.
    """
    fd, parent_pid, url, identity, s3_settings, l2_settings, places = sys.argv[1:]
    s3 = S3Settings(**json.loads(s3_settings)) if s3_settings else None
    die_with_parent(int(parent_pid))
    keep_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C at the terminal is the supervisor's
    logging.basicConfig(level=logging.WARNING, format="fetcher: %(message)s")
    with socket.socket(fileno=int(fd)) as connection:
        line = _Line(connection)
        l2 = _open_l2(l2_settings, line) if l2_settings else None
        fetcher = Fetcher(url, identity, s3, l2)
        fetcher.tell = line.send

        def do(job: Job) -> None:
            line.send(fetcher.answer(job))
            if l2 is not None:
                l2.after_answer()

        if s3 is None:
            inbox = Inbox(connection)
            while (job := inbox.next()) is not None:
                do(job)
        else:
            threads = most_in_flight(s3, int(places), has_l2=bool(l2_settings))
            _serve_in_threads(do, connection, threads, int(places))


def _serve_in_threads(
    do: Callable[[Job], None], connection: socket.socket, threads: int, ahead_threads: int
) -> None:
    """Do jobs in threads; those ahead of demand have theirs, so that they take no place of it.

    The pool sends as many as it holds right, and a thread is begun when none is idle.
    """

    def do_or_end(job: Job) -> None:
        try:
            do(job)
        except BaseException:
            logger.exception("this fetcher ends")
            os._exit(1)  # its jobs go to another

    pool = ThreadPoolExecutor(threads, "job")
    ahead = ThreadPoolExecutor(max(1, ahead_threads), "ahead")
    while (job := _receive(connection)) is not None:
        (ahead if is_ahead(job) else pool).submit(do_or_end, job)
    os._exit(0)  # nobody waits for what is still under way


if __name__ == "__main__":
    main()
