"""The stack: brings chunks into L1, each by one flight at a time, whoever asks.

A miss becomes a flight. Flights are grouped into jobs for the fetchers, and end when a fetcher has
written the verified chunk into a slot. An outage is tried again, with growing pauses, while
somebody still waits; corrupt bytes are asked for once more and never kept, and who comes after them
does not share their error. L1 is optional: with no slot to be had the chunk comes back as bytes.

Concurrency: event loop only. A flight that lands pins its slot until its last waiter has left.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager

import trio

from cachefs.errors import (
    CacheError,
    CachefsError,
    CorruptError,
    DeadlineError,
    ObjectMissingError,
    StoreRefusedError,
    StoreUnavailableError,
)
from cachefs.metrics import Metrics
from cachefs.model.chunk import ChunkRef
from cachefs.policy.admit import ScanFilter
from cachefs.tiers.arrivals import arrival_of
from cachefs.tiers.flight import Flight
from cachefs.tiers.jobs import KEPT, Answer, ChunkJob, ChunksDone, Fetched, Outcome, Wanted
from cachefs.tiers.l1 import L1
from cachefs.tiers.pool import AHEAD, DEMAND, FetcherPool
from cachefs.units import KIB, MIB

logger = logging.getLogger(__name__)

LEAST_JOB_BYTES = 256 * KIB
"""A batch is spread evenly over the fetchers, but a job with less than this (about 0.4 ms of work)
would cost more in messages and wake-ups (about 0.1 ms) than the second fetcher gains."""

MOST_JOB_BYTES = 4 * MIB
"""So that a large batch does not hold back what comes after it."""

_RESERVE_WAIT_S = 0.25
"""How long a fetch waits for a slot before the chunk is served without being kept."""

_NO_USE = (Outcome.UNAVAILABLE, Outcome.UNKEPT)
"""Outcomes after which fetching more ahead would be as useless."""

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0


class Stack:
    """Single flight over an L1 and a pool of fetchers."""

    def __init__(
        self,
        l1: L1,
        pool: FetcherPool,
        nursery: trio.Nursery,
        metrics: Metrics,
        scans: ScanFilter | None = None,
    ) -> None:
        self._scans = scans or ScanFilter(0)
        self._l1 = l1
        self._pool = pool
        self._nursery = nursery
        self._metrics = metrics
        self._flights: dict[bytes, Flight] = {}
        self.on_demand: Callable[[bool], None] = lambda _: None
        """Called when a reader wants what is not here: whether any of it was not under way."""

    @contextmanager
    def flights(
        self,
        refs: Sequence[ChunkRef],
        chunk_bytes: int,
        deadline_s: float,
        *,
        is_kept: bool = True,
    ) -> Iterator[list[Flight]]:
        """Start or join the flights of chunks that L1 does not hold, and leave them at the end.

        Equal chunks share one flight. `deadline_s` is on trio's clock. Not `is_kept`: L1 has them,
        and cannot be read now.
        """
        joined: list[Flight] = []
        fresh: list[Flight] = []
        for ref in refs:
            flight = self._flights.get(ref.id)
            if flight is None:
                flight = self._flights[ref.id] = Flight(ref, chunk_bytes, deadline_s, is_kept)
                fresh.append(flight)
            else:
                self._metrics.joined_chunks += 1
                if flight.ended_ahead and not flight.was_joined:
                    flight.was_joined = True
                    self._pool.hurry(flight.job)
                if flight.corruptions:  # what it has been answered may be older than this reader
                    flight = self._following(flight, deadline_s, is_kept=is_kept)
            flight.waiters += 1
            flight.deadline_s = max(flight.deadline_s, deadline_s)
            joined.append(flight)
        self._metrics.flights = len(self._flights)
        if fresh:
            self._start(fresh, chunk_bytes)
        self.on_demand(bool(fresh))
        try:
            yield joined
        finally:
            for flight in joined:
                self._leave(flight)

    def is_under_way(self, chunk_id: bytes) -> bool:
        """Whether a chunk has a flight."""
        return chunk_id in self._flights

    def fetch_ahead(
        self,
        refs: Sequence[ChunkRef],
        chunk_bytes: int,
        ended: Callable[[Flight], None],
        answered: Callable[[bool], None],
    ) -> int:
        """Begin one job for chunks that nobody waits for; returns how many of them it brings.

        None of them is zero, in L1 or has a flight, and no two are equal. There are as many as L1
        has free slots for. `ended` is told of each flight, `answered` then of the job: whether the
        store was there. What fails is not tried again, unless somebody waits for it by then.
        """
        slots = [] if self._l1.is_left else self._l1.take_free(chunk_bytes, len(refs))
        if not slots:
            return 0
        number = self._pool.next_number()
        pairs: list[tuple[Flight, int | None]] = []
        has_landed: set[int] = set()
        for ref, slot in zip(refs, slots, strict=False):
            flight = Flight(ref, chunk_bytes, 0.0, ended_ahead=ended, job=number)
            self._flights[ref.id] = flight
            pairs.append((flight, slot))
        self._metrics.flights = len(self._flights)
        wanted = tuple(self._wanted(flight.ref, slot) for flight, slot in pairs)

        def landed(members: Sequence[int]) -> None:
            for member in members:
                has_landed.add(member)
                self._chunk_answered(*pairs[member], KEPT)

        def done(answer: Answer) -> None:
            self._answered(pairs, answer, has_landed)
            answered(
                isinstance(answer, ChunksDone)
                and not any(one.outcome in _NO_USE for one in answer.fetched)
            )

        self._pool.submit(ChunkJob(number, wanted, is_ahead=True), AHEAD, done, landed)
        return len(pairs)

    async def wait(self, flights: Sequence[Flight], deadline_s: float) -> None:
        """Wait until all flights have ended well.

        Raises:
            DeadlineError: one was still under way at the deadline.
            CachefsError: one ended with an error.
        """
        for flight in flights:
            if not flight.ended.is_set():
                with trio.move_on_at(deadline_s):
                    await flight.ended.wait()
            if flight.error is not None:
                raise flight.error
            if not flight.ended.is_set():
                cause = f": {flight.outage}" if flight.outage else ""
                raise DeadlineError(f"{flight} did not come from the store in time{cause}")

    def _following(self, flight: Flight, deadline_s: float, *, is_kept: bool) -> Flight:
        """Return a flight that ends as `flight` does, or begins when that ends with an error."""
        later = Flight(flight.ref, flight.chunk_bytes, deadline_s, is_kept)
        flight.follower = self._flights[flight.ref.id] = later
        return later

    def _leave(self, flight: Flight) -> None:
        flight.waiters -= 1
        if not flight.waiters and flight.slot is not None:
            self._l1.unpin(flight.slot)

    def _start(self, flights: list[Flight], chunk_bytes: int) -> None:
        """Send flights off: at once where L1 has free slots, else when it has some."""
        if self._l1.is_left or not all(flight.is_kept for flight in flights):
            self._submit(flights, [None] * len(flights))
            return
        try:
            free = len(self._l1.class_for(chunk_bytes).free)
        except CacheError as error:
            if not self._metrics.l1_errors:
                logger.warning("serving without L1: %s", error)
            self._metrics.l1_errors += 1
            self._submit(flights, [None] * len(flights))
            return
        if free >= len(flights):
            slots: list[int | None] = list(self._l1.take_free(chunk_bytes, len(flights)))
            self._submit(flights, slots)
        else:
            self._nursery.start_soon(self._start_later, flights, chunk_bytes)

    async def _start_later(self, flights: list[Flight], chunk_bytes: int) -> None:
        slots: list[int | None] = []
        slots += await self._l1.reserve(chunk_bytes, len(flights), _RESERVE_WAIT_S)
        slots += [None] * (len(flights) - len(slots))
        self._submit(flights, slots)

    def _submit(self, flights: list[Flight], slots: list[int | None]) -> None:
        pairs = sorted(
            zip(flights, slots, strict=True),
            key=lambda pair: (pair[0].ref.pack, pair[0].ref.offset),
        )
        batch_bytes = sum(flight.ref.plain_bytes for flight in flights)
        share_bytes = -(-batch_bytes // self._pool.count)
        limit_bytes = min(max(share_bytes, LEAST_JOB_BYTES), MOST_JOB_BYTES)
        job: list[tuple[Flight, int | None]] = []
        job_bytes = 0
        for pair in pairs:
            if job and job_bytes + pair[0].ref.plain_bytes > limit_bytes:
                self._submit_job(job)
                job, job_bytes = [], 0
            job.append(pair)
            job_bytes += pair[0].ref.plain_bytes
        self._submit_job(job)

    def _submit_job(self, pairs: list[tuple[Flight, int | None]]) -> None:
        job = ChunkJob(
            self._pool.next_number(),
            tuple(self._wanted(flight.ref, slot) for flight, slot in pairs),
        )
        self._pool.submit(job, DEMAND, lambda answer: self._answered(pairs, answer))

    def _wanted(self, ref: ChunkRef, slot: int | None) -> Wanted:
        segment, position = ("", 0) if slot is None else self._l1.target(slot)
        return Wanted(
            ref.id,
            ref.plain_bytes,
            ref.pack,
            ref.offset,
            ref.frame_bytes,
            segment,
            position,
            self._scans.is_scan(ref.pack, ref.offset, ref.frame_bytes),
        )

    def _answered(
        self,
        pairs: list[tuple[Flight, int | None]],
        answer: Answer,
        has_landed: Collection[int] = (),
    ) -> None:
        if isinstance(answer, ChunksDone):
            self._metrics.l3_requests += answer.requests
            self._metrics.l3_frame_bytes += answer.frame_bytes
            self._metrics.l3_bypassed += answer.bypassed
            fetched = answer.fetched
        else:
            message = str(getattr(answer, "error", "the fetcher failed"))
            fetched = (Fetched(Outcome.UNAVAILABLE, message=message),) * len(pairs)
        again = [
            flight
            for member, ((flight, slot), result) in enumerate(zip(pairs, fetched, strict=True))
            if member not in has_landed and self._chunk_answered(flight, slot, result)
        ]
        if again:
            self._nursery.start_soon(self._try_again, again)
        self._metrics.flights = len(self._flights)

    def _chunk_answered(self, flight: Flight, slot: int | None, result: Fetched) -> bool:
        """Take note of how the fetch of a chunk went; whether it is to be tried again later."""
        ref = flight.ref
        if result.outcome is Outcome.KEPT and slot is not None:
            self._count(result, ref.plain_bytes)
            is_prefetched = flight.ended_ahead is not None and not flight.was_joined
            arrival = arrival_of(ref, from_l2=result.from_l2, is_prefetched=is_prefetched)
            slot = flight.landed_in = self._l1.landed(slot, ref.id, ref.plain_bytes, arrival)
            if flight.waiters:
                self._l1.pin(slot)
                flight.slot = slot
            self._end(flight)
            return False
        if slot is not None:
            self._l1.give_back(slot)
        if result.outcome is Outcome.UNKEPT:
            self._count(result, ref.plain_bytes)
            self._metrics.unkept_chunks += 1
            self._metrics.l1_errors += slot is not None
            flight.plain = result.plain
            self._end(flight)
            return False
        return self._failed(flight, result)

    def _count(self, result: Fetched, plain_bytes: int) -> None:
        if result.from_l2:
            self._metrics.l2_chunks += 1
            self._metrics.l2_plain_bytes += plain_bytes
        else:
            self._metrics.l3_chunks += 1
            self._metrics.l3_plain_bytes += plain_bytes

    def _failed(self, flight: Flight, result: Fetched) -> bool:
        """End the flight, or say that it is to be tried again: while somebody waits."""
        if result.outcome is Outcome.MISSING:
            self._end(flight, ObjectMissingError(flight.named(result.message)))
        elif result.outcome is Outcome.REFUSED:
            self._end(flight, StoreRefusedError(flight.named(result.message)))
        elif result.outcome is Outcome.CORRUPT:
            self._metrics.l3_corrupt += 1
            flight.corruptions += 1
            if flight.corruptions > 1 or (flight.ended_ahead and not flight.waiters):
                self._end(flight, CorruptError(flight.named(result.message)))
            else:
                self._start([flight], flight.chunk_bytes)
        elif not flight.waiters or trio.current_time() >= flight.deadline_s:
            self._end(flight, StoreUnavailableError(flight.named(result.message)))
        else:
            self._metrics.l3_retries += 1
            flight.outages += 1
            flight.outage = result.message
            return True
        return False

    async def _try_again(self, flights: list[Flight]) -> None:
        """Fetch again what one job failed to, as one batch: neighbours stay one request."""
        deadline_s = min(flight.deadline_s for flight in flights)
        outages = min(flight.outages for flight in flights)
        # However long the outage was, whoever waits is not to miss its end: half of what is left.
        left_s = max(_FIRST_PAUSE_S, (deadline_s - trio.current_time()) / 2)
        pause_s = min(_LONGEST_PAUSE_S, left_s, _FIRST_PAUSE_S * 2 ** min(outages - 1, 10))
        await trio.sleep(pause_s * random.uniform(0.5, 1.0))
        wanted = [flight for flight in flights if flight.waiters]
        for flight in flights:
            if not flight.waiters:
                self._end(flight, StoreUnavailableError(flight.named(flight.outage)))
        if wanted:
            self._start(wanted, wanted[0].chunk_bytes)

    def _end(self, flight: Flight, error: CachefsError | None = None) -> None:
        flight.error = error
        if flight.follower is None:
            del self._flights[flight.ref.id]
        self._metrics.flights = len(self._flights)
        flight.ended.set()
        if flight.ended_ahead:
            flight.ended_ahead(flight)
        if flight.follower is not None:
            self._go_on(flight.follower, flight)

    def _go_on(self, later: Flight, flight: Flight) -> None:
        """Let a flight that followed another end as well as that has, else begin it."""
        if flight.error is not None and later.waiters:
            self._start([later], later.chunk_bytes)
            return
        later.plain, later.landed_in = flight.plain, flight.landed_in
        if later.waiters and later.landed_in is not None:
            self._l1.pin(later.landed_in)
            later.slot = later.landed_in
        self._end(later, flight.error)
