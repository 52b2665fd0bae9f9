"""Warming, with fetchers that wait."""

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import trio

from cachefs.config import PrefetchSection
from cachefs.daemon.cache import Cache
from cachefs.errors import UsageError
from cachefs.index.manifest_table import ManifestTable
from cachefs.prefetch.gather import Limits
from cachefs.prefetch.warm import Warming, of_bytes, whole
from cachefs.store.store import Store
from cachefs.tiers.fetcher import Fetcher
from cachefs.tiers.jobs import ChunkJob, Outcome
from cachefs.units import KIB, MIB
from tests.ahead import INODE, Ahead, running_ahead
from tests.caches import HandPool, opened_cache, table_of, wait_until
from tests.stores import import_bytes, new_store

CHUNK = 64 * KIB
DATA = Random(5).randbytes(3 * MIB) + bytes(MIB) + Random(6).randbytes(4 * MIB)
DATA_CHUNKS = 7 * 16
LIMITS = Limits(MIB, MIB)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = new_store(tmp_path_factory.mktemp("warm"))
    import_bytes(store, DATA, chunk_bytes=CHUNK)
    return store


@pytest.fixture
def table(store: Store, tmp_path: Path) -> Iterator[ManifestTable]:
    table = table_of(store, tmp_path)
    yield table
    table.close()


@pytest.fixture
def pool(store: Store) -> HandPool:
    return HandPool(Fetcher(store.url, store.identity))


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    with opened_cache(tmp_path / "cache", 32 * MIB) as cache:
        yield cache


@pytest.fixture
def small_cache(tmp_path: Path) -> Iterator[Cache]:
    with opened_cache(tmp_path / "small", 4 * MIB) as cache:
        yield cache


def warming(ahead: Ahead, table: ManifestTable, bytes_per_s: int = 0) -> Warming:
    jobs = ahead.prefetcher.jobs
    return Warming(jobs, LIMITS, INODE, table, whole(table), bytes_per_s)


async def answer_while_running(ahead: Ahead, warming: Warming) -> None:
    while warming.progress.state == "running":
        assert len(ahead.jobs_ahead()) <= 2
        ahead.answer_all()
        await trio.sleep(0.005)


async def test_all_of_an_image_comes_in_and_is_no_arms(
    cache: Cache, pool: HandPool, table: ManifestTable
) -> None:
    async with running_ahead(cache, pool, table) as ahead:
        warm = warming(ahead, table)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(warm.run)
            await answer_while_running(ahead, warm)
        told = warm.progress.to_dict()
        assert told["state"] == "done"
        assert told["looked_at"] == told["chunks"] == len(DATA) // CHUNK
        assert (told["fetched_chunks"], told["failed_chunks"]) == (DATA_CHUNKS, 0)
        assert cache.l1.resident_chunks == DATA_CHUNKS
        assert (len(ahead.prefetcher.ledger), ahead.prefetcher.budget.out_bytes) == (0, 0)
        again = warming(ahead, table)
        await again.run()
        assert again.progress.fetched_chunks == 0
        assert again.progress.state == "done"


async def test_scattered_chunks_come_in_their_order_and_few_jobs(
    cache: Cache, pool: HandPool, table: ManifestTable
) -> None:
    async with running_ahead(cache, pool, table) as ahead:
        places = [(100, 1), (101, 2), (3, 1), (5, 1), (90, 3), (7, 1)]
        warm = Warming(ahead.prefetcher.jobs, LIMITS, INODE, table, places)
        jobs: list[ChunkJob] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(warm.run)
            while warm.progress.state == "running":
                jobs += [job for job, _, _ in pool.jobs if isinstance(job, ChunkJob)]
                ahead.answer_all()
                await trio.sleep(0.005)
        came = [wanted.chunk_id for job in jobs for wanted in job.wanted]
        order = [chunk for first, count in places for chunk in range(first, first + count)]
        assert came == [table.chunk(chunk).id for chunk in order]
        assert len(jobs) <= 3
        assert warm.progress.fetched_chunks == len(order)


async def test_what_the_store_did_not_give_is_asked_for_again(
    cache: Cache, pool: HandPool, table: ManifestTable
) -> None:
    async with running_ahead(cache, pool, table) as ahead:
        warm = warming(ahead, table)
        failures = 3
        async with trio.open_nursery() as nursery:
            nursery.start_soon(warm.run)
            while warm.progress.state == "running":
                if pool.jobs and failures:
                    pool.answer_all(Outcome.UNAVAILABLE, "away")
                    failures -= 1
                ahead.answer_all()
                await trio.sleep(0.005)
        assert warm.progress.state == "done"
        assert cache.l1.resident_chunks == DATA_CHUNKS


async def test_a_full_l1_gives_up_nothing_for_it(
    small_cache: Cache, pool: HandPool, table: ManifestTable
) -> None:
    async with running_ahead(
        small_cache, pool, table, settings=PrefetchSection(l1_share=1)
    ) as ahead:
        warm = warming(ahead, table)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(warm.run)
            await answer_while_running(ahead, warm)
        assert warm.progress.state == "full"
        assert 0 < warm.progress.fetched_chunks <= 64
        assert small_cache.l1.metrics.evicted_chunks == 0


async def test_it_can_be_cancelled_and_what_is_under_way_comes_in(
    cache: Cache, pool: HandPool, table: ManifestTable
) -> None:
    async with running_ahead(cache, pool, table) as ahead:
        warm = warming(ahead, table)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(warm.run)
            await wait_until(lambda: bool(pool.jobs))
            under_way = sum(len(job.wanted) for job, _, _ in pool.jobs if isinstance(job, ChunkJob))
            warm.scope.cancel()
        assert warm.progress.state == "cancelled"
        ahead.answer_all()
        assert cache.l1.metrics.ahead_chunks == under_way < DATA_CHUNKS


async def test_a_rate_is_kept(cache: Cache, pool: HandPool, table: ManifestTable) -> None:
    async with running_ahead(cache, pool, table) as ahead:
        warm = warming(ahead, table, bytes_per_s=10 * MIB)
        begun_s = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(warm.run)
            await answer_while_running(ahead, warm)
        assert 0.5 < trio.current_time() - begun_s < 5  # 7 MiB; the last is not waited for


def test_a_part_in_bytes_is_the_chunks_that_have_it(table: ManifestTable) -> None:
    assert of_bytes(table, 0, 1) == (0, 1)
    assert of_bytes(table, CHUNK - 1, CHUNK + 1) == (0, 2)
    assert of_bytes(table, CHUNK, 100 * MIB) == (1, len(DATA) // CHUNK - 1)
    for begin, end in ((5, 5), (len(DATA), len(DATA) + 1), (-1, 5)):
        with pytest.raises(UsageError, match="is no part of an image"):
            of_bytes(table, begin, end)
