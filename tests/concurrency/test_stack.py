"""Single flight, deadlines, outages: with a pool that the test answers and a clock that jumps."""

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from cachefs.daemon.cache import Cache
from cachefs.errors import (
    CachefsError,
    CorruptError,
    DeadlineError,
    ObjectMissingError,
    StoreUnavailableError,
)
from cachefs.tiers import stack as module
from cachefs.tiers.jobs import ChunkJob, ChunksDone, Failed, Fetched, Outcome
from cachefs.tiers.pool import DEMAND
from cachefs.tiers.stack import Stack
from cachefs.units import KIB, MIB
from tests.caches import HandPool, Plain, opened_cache, plain_chunk

CHUNK = 64 * KIB
PLAINS = {plain.ref.id: plain for plain in (plain_chunk(n, CHUNK) for n in range(64))}
FIRST, SECOND, THIRD, *_ = PLAINS.values()


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    """Return an opened cache with sixteen free slots and nobody who makes more."""
    with opened_cache(tmp_path / "cache", 16 * MIB) as cache:
        cache.l1.class_for(CHUNK).add_extent(0)
        cache.l1.class_for(CHUNK).segment.allocate(0)
        yield cache
        metrics = cache.l1.metrics
        assert (metrics.waiting_reads, metrics.flights, metrics.pinned_slots) == (0, 0, 0)
        assert not cache.l1.class_for(CHUNK).filling


class Bench:
    """A stack whose fetchers are the test."""

    def __init__(self, cache: Cache, nursery: trio.Nursery) -> None:
        self.cache = cache
        self.pool = HandPool()
        self.nursery = nursery
        self.stack = Stack(cache.l1, self.pool, nursery, cache.l1.metrics)
        self.ended: list[bytes | CachefsError] = []
        """What the readers got, in the order in which they got it."""

    async def read(self, *plains: Plain, wait_s: float = 30) -> bytes:
        deadline_s = trio.current_time() + wait_s
        refs = [plain.ref for plain in plains]
        with self.stack.flights(refs, CHUNK, deadline_s) as flights:
            await self.stack.wait(flights, deadline_s)
            await trio.lowlevel.checkpoint()
            parts = []
            for flight in flights:
                if flight.plain is not None:
                    parts.append(flight.plain)
                else:
                    assert flight.slot is not None
                    fd, position = self.cache.l1.place(flight.slot)
                    parts.append(os.pread(fd, flight.ref.plain_bytes, position))
            return b"".join(parts)

    async def _read_and_tell(self, plains: tuple[Plain, ...], wait_s: float) -> None:
        try:
            self.ended.append(await self.read(*plains, wait_s=wait_s))
        except CachefsError as error:
            self.ended.append(error)

    async def start(self, *plains: Plain, wait_s: float = 30) -> None:
        """Let a reader begin, as far as it comes."""
        self.nursery.start_soon(self._read_and_tell, plains, wait_s)
        await wait_all_tasks_blocked()

    async def asked(self) -> None:
        """Wait until a job is there."""
        while not self.pool.jobs:  # noqa: ASYNC110 - the clock jumps
            await trio.sleep(0.01)

    def land(self) -> None:
        self.pool.land(lambda chunk_id: PLAINS[chunk_id].data)


@asynccontextmanager
async def at_work(cache: Cache) -> AsyncIterator[Bench]:
    async with trio.open_nursery() as nursery:
        yield Bench(cache, nursery)
        await wait_all_tasks_blocked()


async def test_a_chunk_is_fetched_once_whoever_asks(cache: Cache) -> None:
    async with at_work(cache) as bench:
        for _ in range(5):
            await bench.start(FIRST)
        await bench.start(FIRST, SECOND)
        assert [len(job.wanted) for job in bench.pool.chunk_jobs()] == [1, 1]
        assert cache.l1.metrics.flights == 2
        assert cache.l1.metrics.joined_chunks == 5
        bench.land()
        await wait_all_tasks_blocked()
        assert bench.ended == [FIRST.data] * 5
        bench.land()
    assert bench.ended[5] == FIRST.data + SECOND.data
    assert cache.l1.find(FIRST.ref.id) is not None
    assert cache.l1.metrics.l3_chunks == 2
    assert cache.l1.metrics.l3_plain_bytes == 2 * CHUNK


async def test_equal_chunks_of_one_read_are_one_flight(cache: Cache) -> None:
    async with at_work(cache) as bench:
        await bench.start(FIRST, SECOND, FIRST)
        [job] = bench.pool.chunk_jobs()
        assert len(job.wanted) == 2
        bench.land()
    assert bench.ended == [FIRST.data + SECOND.data + FIRST.data]


async def test_jobs_are_in_the_order_of_packs_and_of_a_bounded_size(cache: Cache) -> None:
    plains = list(PLAINS.values())[:16]
    async with at_work(cache) as bench:
        bench.pool.count = 2
        await bench.start(*plains[::-1])
        jobs = bench.pool.chunk_jobs()
        assert [len(job.wanted) for job in jobs] == [8, 8]  # an even share for each fetcher
        offsets = [wanted.offset for job in jobs for wanted in job.wanted]
        assert offsets == sorted(offsets)
        assert all(priority == DEMAND for _, priority, _ in bench.pool.jobs)
        bench.land()
        assert not bench.ended
        bench.land()
    assert bench.ended == [b"".join(plain.data for plain in plains[::-1])]


async def test_who_goes_away_does_not_take_the_flight_along(cache: Cache) -> None:
    async with at_work(cache) as bench:
        await bench.start(FIRST)
        with trio.CancelScope() as scope:
            bench.nursery.start_soon(_cancel_when_blocked, scope)
            await bench.read(FIRST)
        assert scope.cancelled_caught
        bench.land()
    assert bench.ended == [FIRST.data]


async def _cancel_when_blocked(scope: trio.CancelScope) -> None:
    await wait_all_tasks_blocked()
    scope.cancel()


async def test_a_flight_without_readers_lands_all_the_same(cache: Cache) -> None:
    async with at_work(cache) as bench:
        with trio.move_on_after(0) as scope:
            await bench.read(FIRST)
        assert scope.cancelled_caught
        assert cache.l1.metrics.flights == 1
        bench.land()
        assert cache.l1.metrics.flights == 0
        assert cache.l1.find(FIRST.ref.id) is not None


async def test_a_reader_that_comes_late_to_a_left_flight_joins_it(cache: Cache) -> None:
    async with at_work(cache) as bench:
        with trio.move_on_after(0):
            await bench.read(FIRST)
        await bench.start(FIRST)
        assert len(bench.pool.jobs) == 1
        bench.land()
    assert bench.ended == [FIRST.data]


async def test_a_deadline_ends_the_read_and_not_the_flight(
    cache: Cache, autojump_clock: MockClock
) -> None:
    async with at_work(cache) as bench:
        began_s = trio.current_time()
        with pytest.raises(DeadlineError, match=FIRST.ref.id.hex()[:16]):
            await bench.read(FIRST, wait_s=5)
        assert trio.current_time() - began_s == pytest.approx(5)
        assert cache.l1.metrics.flights == 1
        await bench.start(FIRST)
        bench.land()
    assert bench.ended == [FIRST.data]
    assert len(bench.pool.jobs) == 0


async def test_each_reader_has_its_own_deadline(cache: Cache, autojump_clock: MockClock) -> None:
    async with at_work(cache) as bench:
        bench.nursery.start_soon(bench._read_and_tell, (FIRST,), 3)
        bench.nursery.start_soon(bench._read_and_tell, (FIRST,), 9)
        await trio.sleep(5)
        assert [type(end) for end in bench.ended] == [DeadlineError]
        bench.land()
    assert bench.ended[1] == FIRST.data


async def test_the_slot_of_a_landed_chunk_is_held_until_the_last_reader_has_left(
    cache: Cache,
) -> None:
    async with at_work(cache) as bench:
        deadline_s = trio.current_time() + 30
        with bench.stack.flights([FIRST.ref], CHUNK, deadline_s) as first:
            with bench.stack.flights([FIRST.ref], CHUNK, deadline_s) as second:
                assert first == second
                bench.land()
                assert cache.l1.metrics.pinned_slots == 1
            assert cache.l1.metrics.pinned_slots == 1
            slot = first[0].slot
            assert slot in cache.l1.class_for(CHUNK).pins
        assert slot not in cache.l1.class_for(CHUNK).pins


async def test_an_outage_is_tried_again_with_growing_pauses_until_it_is_over(
    cache: Cache, autojump_clock: MockClock
) -> None:
    async with at_work(cache) as bench:
        bench.nursery.start_soon(bench._read_and_tell, (FIRST,), 60)
        asked_s: list[float] = []
        for _ in range(9):
            await bench.asked()
            asked_s.append(trio.current_time())
            bench.pool.answer_all(Outcome.UNAVAILABLE, "away")
            await wait_all_tasks_blocked()
        await bench.asked()
        bench.land()
    assert bench.ended == [FIRST.data]
    assert cache.l1.metrics.l3_retries == 9
    pauses = [later - earlier for earlier, later in pairwise(asked_s)]
    for number, pause_s in enumerate(pauses):
        expected_s = min(module._LONGEST_PAUSE_S, module._FIRST_PAUSE_S * 2**number)
        assert expected_s / 2 <= pause_s <= expected_s + 0.02


async def test_no_pause_is_longer_than_half_of_the_time_left(
    cache: Cache, autojump_clock: MockClock
) -> None:
    """However long the outage was, its end is seen by whoever still waits."""
    async with at_work(cache) as bench:
        deadline_s, left_s = trio.current_time() + 6, 6.0
        bench.nursery.start_soon(bench._read_and_tell, (FIRST,), 6)
        for _ in range(40):
            await bench.asked()
            left_s = deadline_s - trio.current_time()
            if left_s < 0.2:
                break
            bench.pool.answer_all(Outcome.UNAVAILABLE, "away")
            await bench.asked()
            pause_s = left_s - (deadline_s - trio.current_time())
            longest_s = min(module._LONGEST_PAUSE_S, max(module._FIRST_PAUSE_S, left_s / 2))
            assert pause_s <= longest_s + 0.02
        assert left_s < 0.2
        bench.land()
    assert bench.ended == [FIRST.data]


async def test_what_a_job_failed_to_fetch_is_asked_for_again_in_one_job(
    cache: Cache, autojump_clock: MockClock
) -> None:
    async with at_work(cache) as bench:
        await bench.start(THIRD, FIRST, SECOND, wait_s=20)
        [job] = bench.pool.chunk_jobs()
        first = bench.pool.chunk_jobs()[0].wanted[0].chunk_id
        assert len(job.wanted) == 3
        unkept = Fetched(Outcome.UNKEPT, PLAINS[first].data)
        away = Fetched(Outcome.UNAVAILABLE, message="away")
        bench.pool.answer(ChunksDone(job.number, (unkept, away, away), 1, 0))
        await bench.asked()
        [again] = bench.pool.chunk_jobs()
        assert [wanted.chunk_id for wanted in again.wanted] == [
            wanted.chunk_id for wanted in job.wanted[1:]
        ]
        bench.land()
    assert bench.ended == [THIRD.data + FIRST.data + SECOND.data]


async def test_only_what_somebody_still_waits_for_is_asked_for_again(
    cache: Cache, autojump_clock: MockClock
) -> None:
    async with at_work(cache) as bench:
        await bench.start(FIRST, wait_s=20)
        with trio.CancelScope() as scope:
            bench.nursery.start_soon(_cancel_when_blocked, scope)
            await bench.read(SECOND, THIRD)
        await bench.start(THIRD, wait_s=20)
        bench.pool.answer_all(Outcome.UNAVAILABLE, "away")
        bench.pool.answer_all(Outcome.UNAVAILABLE, "away")
        await trio.sleep(1)
        wanted = [[one.chunk_id for one in job.wanted] for job in bench.pool.chunk_jobs()]
        assert sorted(wanted) == sorted([[FIRST.ref.id], [THIRD.ref.id]])
        bench.land()
        bench.land()
    assert sorted(map(str, bench.ended)) == sorted(map(str, [FIRST.data, THIRD.data]))


async def test_an_outage_beyond_the_deadline_says_so_and_leaves_nothing(
    cache: Cache, autojump_clock: MockClock
) -> None:
    async with at_work(cache) as bench:
        bench.nursery.start_soon(bench._read_and_tell, (FIRST,), 4)
        with trio.move_on_after(10):
            while True:
                await bench.asked()
                bench.pool.answer_all(Outcome.UNAVAILABLE, "the store is away")
        assert not bench.pool.jobs
    assert [type(end) for end in bench.ended] == [DeadlineError]
    assert cache.l1.resident_chunks == 0


async def test_an_answer_after_the_deadline_is_not_tried_again(
    cache: Cache, autojump_clock: MockClock
) -> None:
    async with at_work(cache) as bench:
        with pytest.raises(DeadlineError):
            await bench.read(FIRST, wait_s=2)
        bench.pool.answer_all(Outcome.UNAVAILABLE, "away")
        await trio.sleep(20)
        assert not bench.pool.jobs


async def test_an_outage_is_tried_again_only_while_somebody_waits(
    cache: Cache, autojump_clock: MockClock
) -> None:
    async with at_work(cache) as bench:
        with trio.CancelScope() as scope:
            bench.nursery.start_soon(_fail_and_cancel, bench, scope)
            await bench.read(FIRST, wait_s=30)
        assert scope.cancelled_caught
        await trio.sleep(20)
        assert not bench.pool.jobs
        assert cache.l1.metrics.flights == 0
        await bench.start(FIRST)  # and the next reader begins anew
        bench.land()
    assert bench.ended == [FIRST.data]


async def _fail_and_cancel(bench: Bench, scope: trio.CancelScope) -> None:
    await wait_all_tasks_blocked()
    bench.pool.answer_all(Outcome.UNAVAILABLE, "away")
    scope.cancel()


async def test_fetchers_that_keep_dying_are_an_outage(
    cache: Cache, autojump_clock: MockClock
) -> None:
    async with at_work(cache) as bench:
        await bench.start(FIRST)
        number = bench.pool.chunk_jobs()[0].number
        bench.pool.answer(Failed(number, StoreUnavailableError("fetchers ended 3 times")))
        await wait_all_tasks_blocked()
        await bench.asked()
        bench.land()
    assert bench.ended == [FIRST.data]


async def test_corrupt_bytes_are_asked_for_once_more(cache: Cache) -> None:
    async with at_work(cache) as bench:
        await bench.start(FIRST)
        bench.pool.answer_all(Outcome.CORRUPT, "bits")
        assert len(bench.pool.jobs) == 1
        bench.land()
    assert bench.ended == [FIRST.data]
    assert cache.l1.metrics.l3_corrupt == 1


async def test_corrupt_twice_is_an_error_and_not_kept(cache: Cache) -> None:
    async with at_work(cache) as bench:
        await bench.start(FIRST)
        await bench.start(FIRST)
        for _ in range(2):
            bench.pool.answer_all(Outcome.CORRUPT, "chunk 12 in pack 34 is corrupt")
        await wait_all_tasks_blocked()
        assert not bench.pool.jobs
    assert [type(end) for end in bench.ended] == [CorruptError] * 2
    assert "pack 34" in str(bench.ended[0])
    assert cache.l1.resident_chunks == 0
    assert len(cache.l1.class_for(CHUNK).free) == 16


async def test_who_comes_after_wrong_bytes_does_not_share_their_error(cache: Cache) -> None:
    async with at_work(cache) as bench:
        await bench.start(FIRST)
        bench.pool.answer_all(Outcome.CORRUPT, "bits")
        await bench.start(FIRST)
        await bench.start(FIRST, FIRST)
        assert len(bench.pool.jobs) == 1
        bench.pool.answer_all(Outcome.CORRUPT, "bits")
        await wait_all_tasks_blocked()
        assert [type(end) for end in bench.ended] == [CorruptError]
        assert len(bench.pool.jobs) == 1  # one for all who came after
        bench.land()
    assert len(bench.ended) == 3
    assert set(bench.ended[1:]) == {FIRST.data, FIRST.data * 2}


async def test_who_comes_after_wrong_bytes_shares_the_right_ones(cache: Cache) -> None:
    async with at_work(cache) as bench:
        await bench.start(FIRST)
        bench.pool.answer_all(Outcome.CORRUPT, "bits")
        await bench.start(FIRST)
        bench.land()
        await wait_all_tasks_blocked()
        assert not bench.pool.jobs
    assert bench.ended == [FIRST.data] * 2


async def test_wrong_bytes_for_ever_are_an_error_for_each_who_comes(cache: Cache) -> None:
    async with at_work(cache) as bench:
        for failed in (0, 1, 1, 3, 3):
            await bench.start(FIRST)
            assert len(bench.pool.jobs) == 1
            bench.pool.answer_all(Outcome.CORRUPT, "bits")
            await wait_all_tasks_blocked()
            assert len(bench.ended) == failed
        bench.pool.answer_all(Outcome.CORRUPT, "bits")
        await wait_all_tasks_blocked()
        assert not bench.pool.jobs
    assert [type(end) for end in bench.ended] == [CorruptError] * 5


async def test_nobody_is_left_of_those_who_came_after_wrong_bytes(cache: Cache) -> None:
    async with at_work(cache) as bench:
        await bench.start(FIRST)
        bench.pool.answer_all(Outcome.CORRUPT, "bits")
        with trio.CancelScope() as scope:
            bench.nursery.start_soon(_cancel_when_blocked, scope)
            await bench.read(FIRST)
        bench.pool.answer_all(Outcome.CORRUPT, "bits")
        await wait_all_tasks_blocked()
        assert not bench.pool.jobs
    assert [type(end) for end in bench.ended] == [CorruptError]


async def test_a_chunk_that_the_store_lacks_is_an_error_at_once(cache: Cache) -> None:
    async with at_work(cache) as bench:
        await bench.start(FIRST)
        bench.pool.answer_all(Outcome.MISSING, "no such pack")
    assert isinstance(bench.ended[0], ObjectMissingError)


@pytest.mark.parametrize(
    "outcome", [Outcome.MISSING, Outcome.REFUSED, Outcome.CORRUPT, Outcome.UNAVAILABLE]
)
async def test_every_error_names_its_chunk_and_its_cause(cache: Cache, outcome: Outcome) -> None:
    async with at_work(cache) as bench:
        with bench.stack.flights([FIRST.ref], CHUNK, trio.current_time()) as [flight]:
            while bench.pool.jobs:
                bench.pool.answer_all(outcome, "what the store said")
            assert str(flight.error) == f"chunk {FIRST.ref.id.hex()[:16]}: what the store said"


async def test_one_bad_chunk_fails_its_readers_only(cache: Cache) -> None:
    async with at_work(cache) as bench:
        await bench.start(FIRST)
        await bench.start(SECOND)
        await bench.start(FIRST, SECOND)
        bench.pool.answer_all(Outcome.MISSING, "no such pack")
        bench.land()
    assert [type(end) for end in bench.ended].count(ObjectMissingError) == 2
    assert SECOND.data in bench.ended


async def test_without_a_slot_the_chunk_is_served_and_not_kept(
    cache: Cache, autojump_clock: MockClock
) -> None:
    taken = cache.l1.take_free(CHUNK, 16)
    async with at_work(cache) as bench:
        bench.nursery.start_soon(bench._read_and_tell, (FIRST,), 30)
        await trio.sleep(module._RESERVE_WAIT_S + 0.01)
        [job] = bench.pool.chunk_jobs()
        assert job.wanted[0].segment == ""
        bench.land()
    assert bench.ended == [FIRST.data]
    assert cache.l1.metrics.unkept_chunks == 1
    assert cache.l1.metrics.l1_errors == 0
    for slot in taken:
        cache.l1.give_back(slot)


async def test_a_fetch_waits_a_moment_for_room(cache: Cache) -> None:
    taken = cache.l1.take_free(CHUNK, 16)
    async with at_work(cache) as bench:
        await bench.start(FIRST)
        assert not bench.pool.jobs
        assert cache.l1.wake.is_set()
        for slot in taken:
            cache.l1.give_back(slot)
        cache.l1.room.set()
        await wait_all_tasks_blocked()
        assert bench.pool.chunk_jobs()[0].wanted[0].segment
        bench.land()
    assert bench.ended == [FIRST.data]


async def test_a_slot_that_could_not_be_written_is_free_again(cache: Cache) -> None:
    async with at_work(cache) as bench:
        await bench.start(FIRST)
        job = bench.pool.jobs[0][0]
        assert isinstance(job, ChunkJob)
        bench.pool.jobs[0] = (
            ChunkJob(job.number, tuple(w._replace(segment="") for w in job.wanted)),
            *bench.pool.jobs[0][1:],
        )
        bench.land()
    assert bench.ended == [FIRST.data]
    assert cache.l1.metrics.l1_errors == cache.l1.metrics.unkept_chunks == 1
    assert len(cache.l1.class_for(CHUNK).free) == 16
    assert cache.l1.find(FIRST.ref.id) is None


async def test_l1_that_cannot_make_a_class_fails_no_read(
    cache: Cache, autojump_clock: MockClock
) -> None:
    """A cache folder that went away costs the cache, not the reads, and not the daemon."""
    cache.folder.segments_path.rename(cache.folder.path / "elsewhere")
    try:
        async with at_work(cache) as bench:
            small = plain_chunk(1, 4 * KIB)
            deadline_s = trio.current_time() + 30
            with bench.stack.flights([small.ref], 4 * KIB, deadline_s) as flights:
                await trio.sleep(1)
                bench.pool.land(lambda _: small.data)
                await bench.stack.wait(flights, deadline_s)
                assert flights[0].plain == small.data
    finally:
        (cache.folder.path / "elsewhere").rename(cache.folder.segments_path)


async def test_a_chunk_that_l1_got_meanwhile_is_not_kept_twice(cache: Cache) -> None:
    async with at_work(cache) as bench:
        await bench.start(FIRST)
        [slot] = cache.l1.take_free(CHUNK, 1)
        fd, position = cache.l1.place(slot)
        os.pwrite(fd, FIRST.data, position)
        cache.l1.landed(slot, FIRST.ref.id, CHUNK)
        bench.land()
    assert bench.ended == [FIRST.data]
    assert cache.l1.resident_chunks == 1
    assert len(cache.l1.class_for(CHUNK).free) == 15
