"""The prefetcher: demand first, budgets, failures that nobody sees; with fetchers that wait."""

from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from cachefs.config import PrefetchSection
from cachefs.daemon.cache import Cache
from cachefs.errors import CachefsError
from cachefs.index.manifest_table import ManifestTable
from cachefs.policy.prefetch.learner import SECTIONS, keys_at
from cachefs.policy.prefetch.replay import Replay
from cachefs.policy.prefetch.seam import Wish
from cachefs.prefetch.cpu_share import MOST_SAVED_S, SHARE
from cachefs.prefetch.gather import Limits
from cachefs.store.store import Store
from cachefs.tiers.fetcher import Fetcher
from cachefs.tiers.jobs import Failed, Outcome, Wanted
from cachefs.tiers.pool import AHEAD
from cachefs.units import KIB, MIB
from tests.ahead import INODE, Ahead, records, run_of, running_ahead
from tests.caches import HandPool, opened_cache, table_of, wait_until
from tests.stores import import_bytes, new_store

CHUNK = 64 * KIB
DATA = Random(5).randbytes(6 * MIB) + bytes(MIB) + Random(6).randbytes(9 * MIB)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = new_store(tmp_path_factory.mktemp("ahead"))
    import_bytes(store, DATA, chunk_bytes=CHUNK)
    return store


@pytest.fixture
def table(store: Store, tmp_path: Path) -> Iterator[ManifestTable]:
    table = table_of(store, tmp_path)
    yield table
    table.close()


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    with opened_cache(tmp_path / "cache", 32 * MIB) as cache:
        yield cache
        metrics = cache.l1.metrics
        assert (metrics.waiting_reads, metrics.flights, metrics.pinned_slots) == (0, 0, 0)
        assert not any(held.filling for held in cache.l1.classes.values())


@pytest.fixture
def pool(store: Store) -> HandPool:
    return HandPool(Fetcher(store.url, store.identity))


async def room(ahead: Ahead) -> None:
    """Wait until L1 has its first slots."""
    ahead.cache.l1.class_for(CHUNK)
    ahead.cache.l1.wake.set()
    await wait_until(lambda: bool(ahead.cache.l1.class_for(CHUNK).free))


async def begun(ahead: Ahead, until: int = 2 * MIB) -> None:
    """Read on until the prefetcher has begun, as a reader of 256 KiB does."""
    await room(ahead)
    ahead.prefetcher.opened(INODE, ahead.table)
    for part in run_of(0, until, 256 * KIB):
        ahead.prefetcher.observe(records([part]))
    await wait_until(lambda: bool(ahead.jobs_ahead()))


async def test_what_a_run_will_read_is_in_l1_and_known_to_be_used(
    cache: Cache, pool: HandPool, table: ManifestTable
) -> None:
    async with running_ahead(cache, pool, table) as ahead:
        await begun(ahead)
        await ahead.answer_until_calm()
        metrics = cache.l1.metrics
        come = metrics.ahead_chunks
        assert come >= 16
        assert ahead.prefetcher.budget.out_bytes == come * CHUNK
        hit = ahead.reader.read_hit(table, 2 * MIB, MIB)  # without a turn of the loop
        assert hit is not None
        assert bytes(hit) == DATA[2 * MIB : 3 * MIB]
        cache.l1.tell_uses()
        assert metrics.ahead_used == 16
        assert metrics.miss_chunks == 0
        account = ahead.prefetcher.ledger.account("sequential")
        assert (account.used, account.waiting) == (16, come - 16)
        assert account.to_dict(0)["accuracy"] == 1.0


async def test_a_job_ahead_asks_for_one_long_range(
    cache: Cache, pool: HandPool, table: ManifestTable
) -> None:
    async with running_ahead(cache, pool, table) as ahead:
        await begun(ahead)
        await ahead.answer_until_calm()
        ahead.prefetcher.observe(records([(2 * MIB, 2 * MIB)]))
        await wait_until(lambda: bool(ahead.jobs_ahead()))
        job = max(ahead.jobs_ahead(), key=lambda job: len(job.wanted))
        assert len(job.wanted) >= 12
        ends = [wanted.offset + wanted.frame_bytes for wanted in job.wanted]
        assert [wanted.offset for wanted in job.wanted[1:]] == ends[:-1]
        assert {priority for _, priority, _ in pool.jobs} == {AHEAD}
        ahead.answer_all()


async def test_a_reader_joins_what_is_under_way_and_gets_it(
    cache: Cache, pool: HandPool, table: ManifestTable
) -> None:
    async with running_ahead(cache, pool, table) as ahead:
        await begun(ahead)
        job = ahead.jobs_ahead()[0]
        under_way = {wanted.chunk_id for wanted in job.wanted}
        first = next(n for n in range(len(DATA) // CHUNK) if table.id_at(n) in under_way)
        got: list[bytes | memoryview] = []

        async def read() -> None:
            got.append(bytes(await ahead.reader.read(table, first * CHUNK, CHUNK)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await wait_until(lambda: cache.l1.metrics.joined_chunks == 1)
            assert not [job for job in pool.chunk_jobs() if not job.is_ahead]
            ahead.answer_all()
        assert got == [DATA[first * CHUNK : (first + 1) * CHUNK]]
        assert cache.l1.metrics.ahead_late == 1
        assert cache.l1.metrics.miss_chunks == 1


async def test_wrong_bytes_that_nobody_waits_for_are_not_asked_for_again(
    cache: Cache, pool: HandPool, table: ManifestTable
) -> None:
    async with running_ahead(cache, pool, table) as ahead:
        await begun(ahead)
        number = pool.jobs[0][0].number
        pool.answer_all(Outcome.CORRUPT, "wrong bytes")
        assert all(job.is_ahead and job.number != number for job in pool.chunk_jobs())
        assert cache.l1.metrics.ahead_failed == cache.l1.metrics.l3_corrupt > 0
        ahead.answer_all()


async def test_a_failure_is_seen_by_nobody_is_not_tried_again_and_stops_for_a_while(
    cache: Cache, pool: HandPool, table: ManifestTable
) -> None:
    async with running_ahead(cache, pool, table) as ahead:
        await begun(ahead)
        while pool.jobs:
            pool.answer_all(Outcome.UNAVAILABLE, "gone")
        metrics = cache.l1.metrics
        failed = metrics.ahead_failed
        assert failed > 0
        assert ahead.prefetcher.jobs.pace.is_interrupted
        ahead.prefetcher.observe(records([(2 * MIB, MIB)]))
        await trio.sleep(0.1)
        assert not pool.jobs
        assert metrics.read_errors == metrics.l3_retries == 0
        assert ahead.prefetcher.budget.out_bytes == 0
        await trio.sleep(0.6)
        ahead.prefetcher.observe(records([(3 * MIB, MIB)]))
        await wait_until(lambda: len(ahead.jobs_ahead()) == 1)  # one tries
        await trio.sleep(0.05)
        assert len(ahead.jobs_ahead()) == 1
        ahead.answer_all()
        assert not ahead.prefetcher.jobs.pace.is_interrupted


async def test_a_disk_that_takes_nothing_is_not_written_to_on_and_on(
    cache: Cache, pool: HandPool, table: ManifestTable
) -> None:
    async with running_ahead(cache, pool, table) as ahead:
        await begun(ahead)
        pool.answer_all(Outcome.UNKEPT, "no space left")
        assert ahead.prefetcher.jobs.pace.is_interrupted
        await ahead.answer_until_calm()
        assert cache.l1.metrics.ahead_failed > 0
        assert cache.l1.metrics.read_errors == 0


def wanted_now(pool: HandPool) -> set[bytes]:
    """What demand asks the fetchers for."""
    return {
        wanted.chunk_id for job in pool.chunk_jobs() if not job.is_ahead for wanted in job.wanted
    }


@pytest.mark.parametrize("outcome", [Outcome.UNAVAILABLE, Outcome.CORRUPT, None])
async def test_who_has_joined_a_job_that_fails_is_served_all_the_same(
    cache: Cache, pool: HandPool, table: ManifestTable, outcome: Outcome | None
) -> None:
    """Also when the fetcher that did it is gone: the pool gives up such a job at once."""
    async with running_ahead(cache, pool, table) as ahead:
        await begun(ahead)
        job = ahead.jobs_ahead()[0]
        wanted = job.wanted[0]
        first = next(n for n in range(len(DATA) // CHUNK) if table.id_at(n) == wanted.chunk_id)
        got: list[bytes] = []

        async def read() -> None:
            got.append(bytes(await ahead.reader.read(table, first * CHUNK, CHUNK)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await wait_until(lambda: cache.l1.metrics.joined_chunks == 1)
            while job in ahead.jobs_ahead():
                if outcome is None:
                    pool.answer(Failed(pool.jobs[0][0].number, CachefsError("a fetcher ended")))
                else:
                    pool.answer_all(outcome, "trouble")
            await wait_until(lambda: wanted.chunk_id in wanted_now(pool))
            ahead.answer_all()
        assert got == [DATA[first * CHUNK : (first + 1) * CHUNK]]
        assert cache.l1.metrics.read_errors == 0


async def test_places_and_budget_are_never_exceeded(
    cache: Cache, pool: HandPool, table: ManifestTable
) -> None:
    settings = PrefetchSection(most_bytes=2 * MIB, l1_share=1)
    limits = Limits(256 * KIB, 256 * KIB)
    async with running_ahead(
        cache, pool, table, places=3, limits=limits, settings=settings
    ) as ahead:
        await begun(ahead)
        ahead.prefetcher.observe(records(run_of(2 * MIB, 4 * MIB, 256 * KIB)))
        for _ in range(40):
            assert len(ahead.jobs_ahead()) <= 3
            assert all(len(job.wanted) <= 4 for job in ahead.jobs_ahead())
            assert ahead.prefetcher.budget.out_bytes <= MIB  # of one image: half of the host's
            if pool.jobs:
                pool.answer()
            await trio.sleep(0.005)
        assert cache.l1.metrics.ahead_chunks == 16


async def test_what_is_here_or_under_way_is_not_fetched_and_zeros_are_not_asked_for(
    cache: Cache, pool: HandPool, table: ManifestTable
) -> None:
    async with running_ahead(cache, pool, table) as ahead:
        await room(ahead)
        ahead.prefetcher.opened(INODE, table)
        image = ahead.prefetcher.images[INODE]
        ahead.prefetcher.plan(image, "sequential", [Wish(94, 4, 1.0), Wish(90, 24, 1.0)])
        ahead.prefetcher.start_jobs()
        asked = [wanted.chunk_id for job in pool.chunk_jobs() for wanted in job.wanted]
        assert sorted(asked) == sorted(table.id_at(n) for n in [*range(90, 96), 112, 113])
        ahead.prefetcher.plan(image, "sequential", [Wish(90, 24, 1.0)])
        ahead.prefetcher.start_jobs()
        assert sum(len(job.wanted) for job in pool.chunk_jobs()) == 8
        ahead.answer_all()
        await wait_all_tasks_blocked(0.01)
        ahead.prefetcher.plan(image, "sequential", [Wish(90, 24, 1.0), Wish(-5, 5, 1.0)])
        ahead.prefetcher.start_jobs()
        assert not pool.jobs


async def test_with_its_last_handle_an_image_gives_up_its_plan(
    cache: Cache, pool: HandPool, table: ManifestTable
) -> None:
    async with running_ahead(cache, pool, table, places=1) as ahead:
        await begun(ahead)
        image = ahead.prefetcher.images[INODE]
        ahead.prefetcher.plan(image, "sequential", [Wish(112, 64, 1.0)])
        ahead.prefetcher.opened(INODE, table)
        ahead.prefetcher.closed(INODE)
        assert not image.rests(trio.current_time())
        ahead.prefetcher.closed(INODE)
        assert image.rests(trio.current_time())
        await ahead.answer_until_calm()
        come = cache.l1.metrics.ahead_chunks
        assert 0 < come < 64
        image.closed_s = trio.current_time() - 60
        await wait_until(lambda: INODE not in ahead.prefetcher.images, 5)
        assert cache.l1.metrics.ahead_wasted == come
        assert cache.l1.metrics.ahead_unread_bytes == 0
        assert cache.l1.metrics.ahead_wasted_bytes > come * CHUNK * 0.9


async def test_an_image_that_is_opened_again_soon_goes_on_with_its_plan(
    cache: Cache, pool: HandPool, table: ManifestTable
) -> None:
    """As where one program looks at an image, and another one opens it for a guest."""
    async with running_ahead(cache, pool, table, places=1) as ahead:
        await room(ahead)
        ahead.prefetcher.opened(INODE, table)
        ahead.prefetcher.closed(INODE)
        ahead.prefetcher.plan(ahead.prefetcher.images[INODE], "sequential", [Wish(0, 32, 1.0)])
        ahead.prefetcher.start_jobs()
        assert not ahead.jobs_ahead()
        ahead.prefetcher.opened(INODE, table)
        await wait_until(lambda: bool(ahead.jobs_ahead()))
        await ahead.answer_until_calm()
        assert cache.l1.metrics.ahead_chunks == 32


async def test_evicted_before_anybody_read_it_is_told(
    cache: Cache, pool: HandPool, table: ManifestTable
) -> None:
    async with running_ahead(cache, pool, table) as ahead:
        await begun(ahead)
        wanted = ahead.jobs_ahead()[0].wanted[0]
        ahead.answer_all()
        placement = cache.l1.find(wanted.chunk_id)
        assert placement is not None
        cache.l1.drop(wanted.chunk_id, placement.slot)
        assert cache.l1.metrics.ahead_evicted == 1
        ahead.answer_all()


@pytest.fixture
def small_cache(tmp_path: Path) -> Iterator[Cache]:
    with opened_cache(tmp_path / "small", 4 * MIB) as cache:
        yield cache


async def test_of_a_full_l1_only_a_share_is_taken(
    small_cache: Cache, pool: HandPool, table: ManifestTable
) -> None:
    settings = PrefetchSection(l1_share=0.25)
    async with running_ahead(small_cache, pool, table, settings=settings) as ahead:
        await begun(ahead)
        slots = small_cache.l1.class_for(CHUNK)
        for _ in range(100):
            assert len(ahead.prefetcher.ledger) + len(slots.filling) <= 16  # a quarter of L1
            ahead.answer_all()
            await trio.sleep(0.005)
        assert small_cache.l1.metrics.ahead_evicted == 0


async def test_a_reader_need_not_wait_for_the_whole_job(
    cache: Cache, pool: HandPool, table: ManifestTable
) -> None:
    """And what has landed stays, whatever becomes of the rest."""
    async with running_ahead(cache, pool, table) as ahead:
        await begun(ahead)
        job = max(ahead.jobs_ahead(), key=lambda job: len(job.wanted))
        first = next(
            n for n in range(len(DATA) // CHUNK) if table.id_at(n) == job.wanted[0].chunk_id
        )
        got: list[bytes] = []

        async def read() -> None:
            got.append(bytes(await ahead.reader.read(table, first * CHUNK, CHUNK)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await wait_until(lambda: cache.l1.metrics.joined_chunks == 1)
            for wanted in job.wanted[:2]:
                _write(wanted, _plain(table, wanted.chunk_id))
            pool.landed[job.number]([0, 1])
        assert got == [DATA[first * CHUNK : (first + 1) * CHUNK]]
        assert any(waiting.number == job.number for waiting in ahead.jobs_ahead())
        while pool.jobs:  # the rest is lost with its fetcher
            pool.answer(Failed(pool.jobs[0][0].number, CachefsError("a fetcher ended")))
        assert cache.l1.find(job.wanted[0].chunk_id) is not None
        assert cache.l1.find(job.wanted[1].chunk_id) is not None
        assert cache.l1.metrics.ahead_chunks == 2


def _write(wanted: Wanted, plain: bytes) -> None:
    with Path(wanted.segment).open("r+b") as segment:
        segment.seek(wanted.position)
        segment.write(plain)


def _plain(table: ManifestTable, chunk_id: bytes) -> bytes:
    index = next(n for n in range(len(DATA) // CHUNK) if table.id_at(n) == chunk_id)
    return DATA[index * CHUNK : (index + 1) * CHUNK]


async def test_a_miss_is_looked_at_at_once_and_what_comes_as_foreseen_a_little_later(
    cache: Cache, pool: HandPool, table: ManifestTable, autojump_clock: MockClock
) -> None:
    looked_s: list[float] = []

    async def looks_after(*, is_miss: bool) -> float:
        await trio.sleep(0.1)
        before, now_s = len(looked_s), trio.current_time()
        ahead.prefetcher.wake(is_miss=False)
        await trio.sleep(0.0015)  # in the pause after that turn
        ahead.prefetcher.wake(is_miss=is_miss)
        await trio.sleep(0.1)
        assert len(looked_s) == before + 2
        return looked_s[-1] - now_s

    async with running_ahead(cache, pool, table) as ahead:
        ahead.prefetcher._digest = lambda: looked_s.append(trio.current_time())
        assert await looks_after(is_miss=True) < 0.002
        assert 0.004 < await looks_after(is_miss=False) < 0.006


async def test_the_next_job_begins_when_one_ends_without_a_turn(
    cache: Cache, pool: HandPool, table: ManifestTable
) -> None:
    async with running_ahead(cache, pool, table, places=1) as ahead:
        await begun(ahead, 4 * MIB)
        first = ahead.jobs_ahead()
        ahead.pool.answer()
        assert len(first) == len(ahead.jobs_ahead()) == 1
        assert first != ahead.jobs_ahead()
        await ahead.answer_until_calm()


async def test_beside_a_start_that_goes_as_it_is_known_others_have_to_be_certain(
    cache: Cache, pool: HandPool, table: ManifestTable
) -> None:
    async with running_ahead(cache, pool, table) as ahead:
        prefetcher, replay = ahead.prefetcher, Replay()
        prefetcher.add_arm(replay)
        prefetcher.opened(INODE, table)
        image = prefetcher.images[INODE]
        wishes = [Wish(10, 4, 0.8)]
        prefetcher.plan(image, "sequential", wishes)
        assert image.plan.chunks == 4
        image.plan.clear()
        places = np.arange(64)
        rows = np.zeros(64, SECTIONS["replay"])
        rows["key"], rows["place"], rows["which"] = keys_at(image, places), places, 1
        replay.taught(image, rows)
        replay.opened(image, 0.0)
        prefetcher.plan(image, "sequential", wishes)
        assert not image.plan
        prefetcher.plan(image, "sequential", [Wish(10, 4, 0.95)])
        prefetcher.plan(image, "replay", wishes)
        assert image.plan.chunks == 8
        image.plan.clear()


async def test_arms_that_have_used_up_their_share_of_the_processor_look_again_later(
    cache: Cache, pool: HandPool, table: ManifestTable, autojump_clock: MockClock
) -> None:
    async with running_ahead(cache, pool, table) as ahead:
        prefetcher, replay = ahead.prefetcher, Replay()
        prefetcher.add_arm(replay)
        prefetcher.opened(INODE, table)
        image = prefetcher.images[INODE]
        prefetcher.observe(records([(0, CHUNK)]))  # earns no more than it may save
        prefetcher._cpu_share.spend(MOST_SAVED_S + 10 * SHARE)
        run = run_of(0, 8 * MIB, 256 * KIB)
        for part in run[:16]:
            prefetcher.observe(records([part]))
        assert not image.plan
        assert cache.l1.metrics.ahead_unseen == 16
        assert len(replay.record(image)) > 60  # what a start touches is recorded all the same
        await trio.sleep(11)
        for part in run[16:]:
            prefetcher.observe(records([part]))
        assert ahead.jobs_ahead() or image.plan
        assert cache.l1.metrics.ahead_unseen == 16
        image.plan.clear()
        await ahead.answer_until_calm()


async def test_nothing_is_fetched_while_a_profile_is_looked_for(
    cache: Cache, pool: HandPool, table: ManifestTable
) -> None:
    async with running_ahead(cache, pool, table) as ahead:
        await room(ahead)
        prefetcher, replay = ahead.prefetcher, Replay()
        prefetcher.add_arm(replay)
        prefetcher.opened(INODE, table)
        image = prefetcher.images[INODE]
        prefetcher.hold(image)
        prefetcher.plan(image, "sequential", [Wish(64, 4, 0.8)])
        prefetcher.start_jobs()
        assert not ahead.jobs_ahead()
        places = np.arange(8)
        rows = np.zeros(8, SECTIONS["replay"])
        rows["key"], rows["place"], rows["which"] = keys_at(image, places), places, 1
        replay.taught(image, rows)
        prefetcher.plan(image, replay.name, replay.opened(image, 0.0))
        prefetcher.release(image)
        await ahead.answer_until_calm()
        assert cache.l1.metrics.ahead_chunks == 8  # what the replay knows, and nothing else


async def test_a_profile_that_does_not_come_holds_up_others_for_a_moment(
    cache: Cache, pool: HandPool, table: ManifestTable
) -> None:
    async with running_ahead(cache, pool, table) as ahead:
        await room(ahead)
        prefetcher = ahead.prefetcher
        prefetcher.opened(INODE, table)
        image = prefetcher.images[INODE]
        prefetcher.hold(image)
        prefetcher.plan(image, "sequential", [Wish(64, 4, 0.8)])
        prefetcher.start_jobs()
        assert not ahead.jobs_ahead()
        await wait_until(lambda: bool(ahead.jobs_ahead()))  # by itself
        ahead.answer_all()


async def test_bytes_under_way_have_a_bound_of_their_own(
    cache: Cache, pool: HandPool, table: ManifestTable
) -> None:
    limits = Limits(256 * KIB, 256 * KIB)
    async with running_ahead(cache, pool, table, places=16, limits=limits) as ahead:
        ahead.prefetcher.jobs._most_bytes = 512 * KIB
        ahead.prefetcher.jobs.pace._limit = 16.0
        await room(ahead)
        ahead.prefetcher.opened(INODE, table)
        image = ahead.prefetcher.images[INODE]
        ahead.prefetcher.plan(image, "sequential", [Wish(0, 32, 1.0)])
        ahead.prefetcher.start_jobs()
        under_way = sum(w.frame_bytes for job in ahead.jobs_ahead() for w in job.wanted)
        assert 512 * KIB <= under_way <= 768 * KIB
        await ahead.answer_until_calm()
        assert cache.l1.metrics.ahead_chunks == 32
