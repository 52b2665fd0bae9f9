"""The pool of fetchers: gives jobs to processes, by priority, and survives their deaths.

A job that a fetcher took with it is given to another. A slot that a dead fetcher may have been
writing to is handed on only when the process is really gone.

Concurrency: event loop only.
"""

from __future__ import annotations

import heapq
import itertools
import json
import logging
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import trio

from cachefs.config import L2Section
from cachefs.errors import StoreUnavailableError
from cachefs.metrics import Metrics
from cachefs.store.s3_settings import S3Settings
from cachefs.tiers.in_flight import SMALL_JOB_BYTES, InFlight, most_in_flight
from cachefs.tiers.jobs import (
    LENGTH,
    Answer,
    ChunkJob,
    ChunksDone,
    ChunksLanded,
    Failed,
    Job,
    L2Report,
    Message,
    Outcome,
    encode,
)
from cachefs.tiers.l2.watch import L2Watch

logger = logging.getLogger(__name__)

_JOBS_AHEAD = 2
"""Jobs of a fetcher of a local store: the next lies in its socket when it ends one."""

DEMAND = 0
"""The priority of what a reader waits for: before everything else."""

AHEAD = 5
"""The priority of what nobody waits for yet; at most `ahead_places` of a fetcher do such jobs."""

_MAX_DEATHS = 3
"""A job that ended so many fetchers is not tried again."""


@dataclass(order=True, slots=True)
class _Ticket:
    priority: int
    serial: int
    job: Job = field(compare=False)
    done: Callable[[Answer], None] = field(compare=False)
    landed: Callable[[Sequence[int]], None] | None = field(default=None, compare=False)
    deaths: int = field(default=0, compare=False)
    sent_s: float = field(default=0.0, compare=False)

    @property
    def is_small(self) -> bool:
        """Whether it waits for the store and little else."""
        job = self.job
        if not isinstance(job, ChunkJob) or job.is_ahead:
            return False
        return sum(wanted.plain_bytes for wanted in job.wanted) <= SMALL_JOB_BYTES

    @property
    def is_ahead(self) -> bool:
        """Whether nobody waits for it."""
        return isinstance(self.job, ChunkJob) and self.job.is_ahead


@dataclass(slots=True)
class _Running:
    process: subprocess.Popen[bytes]
    stream: trio.SocketStream
    tickets: dict[int, _Ticket]
    last_sign_s: float
    in_flight: InFlight
    """How many jobs that somebody waits for it may have."""
    ahead: int = 0
    """How many of the tickets are of jobs for which nobody waited."""
    small: int = 0
    """How many are small."""


class FetcherPool:
    """Runs `count` fetchers for one store."""

    def __init__(
        self,
        store_url: str,
        store_identity: str,
        count: int,
        lock_fd: int,
        job_timeout_s: float,
        metrics: Metrics,
        s3: S3Settings | None = None,
        l2: L2Section | None = None,
        ahead_places: int = 1,
    ) -> None:
        # Seen by everybody in `ps`: they say where a password is, never what it is.
        self._arguments = [
            store_url,
            store_identity,
            json.dumps(asdict(s3)) if s3 else "",
            l2.model_dump_json() if l2 is not None and l2.url else "",
            str(ahead_places),
        ]
        self.ahead_places = ahead_places
        """Jobs ahead of demand that one fetcher does at once, beside those that somebody needs."""
        self._jobs_at_once = s3.requests_in_flight if s3 else _JOBS_AHEAD
        has_l2 = l2 is not None and bool(l2.url)
        self._small_jobs_at_once = (
            most_in_flight(s3, ahead_places, has_l2=has_l2) if s3 else _JOBS_AHEAD
        )
        self.l2 = L2Watch("" if l2 is None else l2.url, metrics)
        self.count = count
        self._lock_fd = lock_fd
        self._job_timeout_s = job_timeout_s
        self._metrics = metrics
        self._queue: list[_Ticket] = []
        self._serial = itertools.count()
        self._changed = trio.Event()
        """Set when a job came in or went out; replaced then."""
        self.pids: set[int] = set()

    @property
    def queued(self) -> int:
        """Jobs that no fetcher has yet."""
        return len(self._queue)

    def next_number(self) -> int:
        """Return a number for a new job."""
        return next(self._serial)

    def submit(
        self,
        job: Job,
        priority: int,
        done: Callable[[Answer], None],
        landed: Callable[[Sequence[int]], None] | None = None,
    ) -> None:
        """Queue a job; `done` is called with its answer, from the event loop.

        `landed` is told before that, perhaps, which chunks of a job ahead are in their slots.
        """
        self._requeue(_Ticket(priority, job.number, job, done, landed))

    def hurry(self, number: int) -> None:
        """Somebody waits for a job now that was queued ahead; one that is under way stays so."""
        for ticket in self._queue:
            if ticket.job.number == number and ticket.priority == AHEAD:
                assert isinstance(ticket.job, ChunkJob)
                ticket.priority, ticket.job = DEMAND, replace(ticket.job, is_ahead=False)
                heapq.heapify(self._queue)
                self._announce()
                return

    async def ask(self, job: Job, priority: int) -> Answer:
        """Queue a job and return its answer.

        Raises:
            CachefsError: the job failed.
        """
        arrived = trio.Event()
        answers: list[Answer] = []

        def done(answer: Answer) -> None:
            answers.append(answer)
            arrived.set()

        self.submit(job, priority, done)
        await arrived.wait()
        if isinstance(answers[0], Failed):
            raise answers[0].error
        return answers[0]

    async def run(self) -> None:
        """Keep the fetchers running until cancelled; then end them and wait until they are gone."""
        async with trio.open_nursery() as nursery:
            for _ in range(self.count):
                nursery.start_soon(self._keep_one)

    async def _keep_one(self) -> None:
        backoff_s = 0.0
        while True:
            started_s = trio.current_time()
            try:
                await self._run_one()
            except OSError as error:  # no process or no socket to be had now
                logger.warning("cannot start a fetcher: %s", error)
            self._metrics.fetcher_deaths += 1
            backoff_s = (
                0.0 if trio.current_time() - started_s > 10 else min(5.0, backoff_s * 2 + 0.05)
            )
            await trio.sleep(backoff_s)

    async def _run_one(self) -> None:
        running = self._start()
        try:
            async with trio.open_nursery() as nursery:
                stop = nursery.cancel_scope.cancel
                nursery.start_soon(self._send_jobs, running)
                nursery.start_soon(self._until, self._receive_answers, running, stop)
                nursery.start_soon(self._until, self._watch, running, stop)
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            logger.debug("fetcher %d closed its socket", running.process.pid)
        finally:
            with trio.CancelScope(shield=True):
                running.process.kill()
                await _wait_for_end(running.process)
                await running.stream.aclose()
            self.pids.discard(running.process.pid)
            self.l2.gone(running.process.pid)
            self._take_back(running)

    async def _until(
        self,
        task: Callable[[_Running], Coroutine[Any, Any, None]],
        running: _Running,
        stop: Callable[[], None],
    ) -> None:
        await task(running)
        stop()

    def _start(self) -> _Running:
        ours, theirs = socket.socketpair()
        with theirs, ExitStack() as undo:
            undo.callback(ours.close)
            fd = theirs.fileno()
            # Not trio's open_process: it forks in a thread, with whose end the fetcher would die.
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "cachefs.tiers.fetcher_process",
                    str(fd),
                    str(os.getpid()),
                    *self._arguments,
                ],
                pass_fds=(fd, self._lock_fd),
                stdin=subprocess.DEVNULL,
            )
            undo.pop_all()
        self.pids.add(process.pid)
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        in_flight = InFlight(self._jobs_at_once, self._small_jobs_at_once)
        return _Running(process, stream, {}, trio.current_time(), in_flight)

    async def _send_jobs(self, running: _Running) -> None:
        while True:
            while not self._has_place(running):
                await self._changed.wait()
            ticket = heapq.heappop(self._queue)
            ticket.sent_s = trio.current_time()
            if not running.tickets:
                running.last_sign_s = ticket.sent_s
            running.tickets[ticket.job.number] = ticket
            running.ahead += ticket.is_ahead
            running.small += ticket.is_small
            await running.stream.send_all(encode(ticket.job))

    def _has_place(self, running: _Running) -> bool:
        """Whether this fetcher may take the first job of the queue."""
        if not self._queue:
            return False
        if self._queue[0].is_ahead:
            return running.ahead < self.ahead_places
        demanded = len(running.tickets) - running.ahead
        if demanded >= running.in_flight.limit:
            return False
        return self._queue[0].is_small or demanded - running.small < self._jobs_at_once

    async def _receive_answers(self, running: _Running) -> None:
        buffer = bytearray()
        while True:
            received = await running.stream.receive_some(1 << 20)
            if not received:
                return
            buffer += received
            running.last_sign_s = trio.current_time()
            while len(buffer) >= LENGTH.size:
                end = LENGTH.size + LENGTH.unpack_from(buffer)[0]
                if len(buffer) < end:
                    break
                answer: Message = pickle.loads(memoryview(buffer)[LENGTH.size : end])
                del buffer[:end]
                if isinstance(answer, L2Report):
                    self.l2.report(running.process.pid, answer)
                    continue
                if isinstance(answer, ChunksLanded):
                    landed = running.tickets[answer.number].landed
                    if landed is not None:
                        landed(answer.members)
                    continue
                ticket = running.tickets.pop(answer.number)
                _learn(running, ticket, answer)
                running.ahead -= ticket.is_ahead
                running.small -= ticket.is_small
                ticket.done(answer)
                self._announce()

    async def _watch(self, running: _Running) -> None:
        """Return when the fetcher has been silent over a job for too long."""
        while True:
            await trio.sleep(min(1.0, self._job_timeout_s / 4))
            silent_s = trio.current_time() - running.last_sign_s
            if running.tickets and silent_s > self._job_timeout_s:
                logger.warning(
                    "fetcher %d is silent for %.0f s: it is ended", running.process.pid, silent_s
                )
                return

    def _take_back(self, running: _Running) -> None:
        """Queue the jobs of a fetcher that is gone again, or give them up."""
        for ticket in running.tickets.values():
            ticket.deaths += 1
            if ticket.deaths < _MAX_DEATHS and not ticket.is_ahead:
                self._requeue(ticket)
                continue
            kind = (
                "chunks" if isinstance(ticket.job, ChunkJob) else "a manifest or the list of images"
            )
            error = StoreUnavailableError(
                f"fetchers that were asked for {kind} ended {ticket.deaths} times"
            )
            ticket.done(Failed(ticket.job.number, error))

    def _requeue(self, ticket: _Ticket) -> None:
        heapq.heappush(self._queue, ticket)
        self._announce()

    def _announce(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


def _learn(running: _Running, ticket: _Ticket, answer: Answer) -> None:
    """Learn how many jobs a fetcher should have from one that asked the store once."""
    if not isinstance(answer, ChunksDone) or not ticket.is_small or answer.requests != 1:
        return
    if any(one.outcome is Outcome.UNAVAILABLE for one in answer.fetched):
        running.in_flight.failed()
        return
    now_s = trio.current_time()
    demanded = len(running.tickets) + 1 - running.ahead
    running.in_flight.answered(now_s - ticket.sent_s, demanded, now_s)


async def _wait_for_end(process: subprocess.Popen[bytes]) -> None:
    """Wait until a process is gone, and take its exit status."""
    if process.poll() is not None:
        return
    fd = os.pidfd_open(process.pid)
    try:
        await trio.lowlevel.wait_readable(fd)
    finally:
        os.close(fd)
    process.wait()
