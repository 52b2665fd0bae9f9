"""Fetching ahead under any events: budgets hold, demand goes first, plans are the events' alone."""

import socket
from dataclasses import replace
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from cachefs.config import PrefetchSection
from cachefs.daemon.cache import Cache
from cachefs.errors import CachefsError
from cachefs.index.manifest_table import ManifestTable
from cachefs.policy.prefetch.seam import Wish
from cachefs.policy.prefetch.sequential import Sequential
from cachefs.prefetch.gather import Limits
from cachefs.store.store import Store
from cachefs.tiers.fetcher import Fetcher
from cachefs.tiers.fetcher_process import Inbox
from cachefs.tiers.jobs import ChunkJob, Failed, Outcome, encode
from cachefs.units import KIB, MIB
from tests.ahead import INODE, Ahead, records, running_ahead
from tests.caches import HandPool, opened_cache, table_of
from tests.stores import import_bytes, new_store
from tests.unit.policy.prefetch.images import Bare, read

CHUNK = 4 * KIB
DATA = Random(1).randbytes(MIB) + bytes(MIB // 4) + Random(2).randbytes(MIB)
PLACES = 2
LIMITS = Limits(64 * KIB, 64 * KIB)


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.integers(5, 8), st.sampled_from([256 * KIB, MIB, 8 * MIB]))
def test_no_job_and_no_sum_of_jobs_exceeds_its_limits(seed: int, share: int, quota: int) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        store = new_store(folder)
        import_bytes(store, DATA, chunk_bytes=CHUNK)
        table = table_of(store, folder)
        with opened_cache(folder / "cache", quota + MIB) as cache:
            trio.run(_any_events, store, cache, table, Random(seed), share / 16)
            metrics = cache.l1.metrics
            gauges = (metrics.flights, metrics.pinned_slots, metrics.ahead_jobs)
            assert gauges == (0, 0, 0)
            assert not any(held.filling for held in cache.l1.classes.values())
        table.close()


async def _any_events(
    store: Store, cache: Cache, table: ManifestTable, chosen: Random, share: float
) -> None:
    pool = HandPool(Fetcher(store.url, store.identity))
    settings = PrefetchSection(l1_share=share)
    async with running_ahead(
        cache, pool, table, places=PLACES, limits=LIMITS, settings=settings, deadline_s=5
    ) as ahead:
        ahead.prefetcher.opened(INODE, table)
        async with trio.open_nursery() as readers:
            for _ in range(60):
                _any_event(ahead, chosen, readers)
                _check(ahead, int(share * cache.l1.quota_bytes))
                await trio.sleep(0.001)
            while ahead.pool.jobs or cache.l1.metrics.waiting_reads:
                ahead.answer_all()
                await trio.sleep(0.001)


def _any_event(ahead: Ahead, chosen: Random, readers: trio.Nursery) -> None:
    action = chosen.random()
    at = chosen.randrange(len(DATA))
    if action < 0.3:
        size_bytes = chosen.choice([4096, 16384, 65536])
        reads = [(at + n * size_bytes, size_bytes) for n in range(chosen.randrange(1, 12))]
        ahead.prefetcher.observe(records(reads, by_lane=chosen.random() < 0.5))
    elif action < 0.45:
        image = ahead.prefetcher.images.get(INODE)
        if image is not None:
            wish = Wish(at // CHUNK - 5, chosen.randrange(200), chosen.random())
            ahead.prefetcher.plan(image, "sequential", [wish])
            ahead.prefetcher.start_jobs()
    elif action < 0.6:
        readers.start_soon(_read, ahead, at, chosen.randrange(1, 200_000))
    elif action < 0.65:
        ahead.prefetcher.closed(INODE)
        ahead.prefetcher.opened(INODE, ahead.table)
    elif ahead.pool.jobs:
        _any_answer(ahead, chosen)


def _any_answer(ahead: Ahead, chosen: Random) -> None:
    job = ahead.pool.jobs[0][0]
    is_ahead = isinstance(job, ChunkJob) and job.is_ahead
    outcome = chosen.random()
    if not is_ahead or outcome < 0.7:
        ahead.pool.answer()
    elif outcome < 0.85:
        ahead.pool.answer_all(chosen.choice([Outcome.UNAVAILABLE, Outcome.CORRUPT]), "trouble")
    else:
        ahead.pool.answer(Failed(job.number, CachefsError("its fetcher is gone")))


async def _read(ahead: Ahead, at: int, size_bytes: int) -> None:
    data = await ahead.reader.read(ahead.table, at, size_bytes)
    assert data == DATA[at : at + size_bytes]


def _check(ahead: Ahead, share_bytes: int) -> None:
    budget = ahead.prefetcher.budget
    assert 0 <= budget.out_bytes <= budget.host_bytes <= share_bytes
    assert all(0 < taken <= budget.host_bytes // 2 for taken in budget.by_image.values())
    jobs = ahead.jobs_ahead()
    assert len(jobs) <= PLACES
    for job in jobs:
        assert sum(wanted.plain_bytes for wanted in job.wanted) <= LIMITS.plain_bytes
    under_way = [wanted.chunk_id for job in ahead.pool.chunk_jobs() for wanted in job.wanted]
    assert len(under_way) == len(set(under_way))  # no chunk is fetched twice at the same time


@given(st.lists(st.sampled_from(["demand", "ahead", "take"]), max_size=60))
def test_no_job_ahead_is_begun_while_demand_waits_for_the_fetcher(events: list[str]) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        inbox = Inbox(theirs)
        waiting: list[ChunkJob] = []
        for number, event in enumerate(events):
            if event != "take":
                job = ChunkJob(number, (), event == "ahead")
                ours.sendall(encode(job))
                waiting.append(job)
            elif waiting:
                taken = inbox.next()
                demand = [job for job in waiting if not job.is_ahead]
                assert taken == (demand or waiting)[0]
                waiting.remove(replace((demand or waiting)[0]))


steps = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 4000), st.integers(1, 64), st.integers(1, 3)),
    max_size=150,
)


@given(steps)
def test_the_same_events_make_the_same_wishes_within_the_image(
    events: list[tuple[int, int, int, int]],
) -> None:
    def once() -> list[Wish]:
        arm, image = Sequential(MIB), Bare(1000, CHUNK)
        wishes = list(arm.opened(image, 0.0))
        ends = [0, 100_000, 2_000_000, 3_000_000]
        for number, (which, place, pages, reader) in enumerate(events):
            offset = ends[which] if which else place * 1000
            size_bytes = min(pages * 4096, image.chunks * CHUNK - offset)
            if size_bytes <= 0:
                continue
            ends[which] = offset + size_bytes
            access = read(offset, size_bytes, number / 100, reader, CHUNK)
            wishes += arm.observe(image, access)
        return wishes

    wishes = once()
    assert wishes == once()
    for wish in wishes:
        assert wish.first >= 0
        assert wish.first + wish.count <= 1000
