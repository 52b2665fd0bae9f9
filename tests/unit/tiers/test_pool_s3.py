"""The pool over a store on S3 that is far: how many jobs are under way at once."""

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest
import trio

from cachefs.metrics import Metrics
from cachefs.store.store import Store, create_store
from cachefs.tiers.in_flight import SMALL_JOB_BYTES
from cachefs.tiers.jobs import Answer, ChunkJob, ChunksDone, Outcome, Wanted
from cachefs.tiers.pool import DEMAND, FetcherPool
from tests.caches import table_of, wait_until
from tests.proxies.faults import Fault
from tests.proxies.http_proxy import HttpProxy
from tests.proxies.proxy import closing
from tests.s3.servers import S3Server
from tests.stores import CHUNK, import_bytes

CHUNKS = 300
DATA = Random(1).randbytes(CHUNKS * CHUNK)
LEAST, CONNECTIONS, AHEAD_PLACES = 2, 24, 4
MOST = CONNECTIONS - AHEAD_PLACES
FAR = Fault(delay_s=0.1)


@pytest.fixture
def proxy(s3: S3Server) -> Iterator[HttpProxy]:
    with closing(HttpProxy(s3.address)) as made:
        yield made


@pytest.fixture
def wanted(s3_url: str, tmp_path: Path) -> tuple[Store, list[Wanted]]:
    store = create_store(s3_url)
    import_bytes(store, DATA)
    table = table_of(store, tmp_path)
    refs = [table.chunk(index) for index in range(CHUNKS)]
    table.close()
    return store, [
        Wanted(r.id, r.plain_bytes, r.pack, r.offset, r.frame_bytes, "", 0) for r in refs
    ]


class Counted:
    """Jobs that a pool has been given, and the most of them that its fetcher had."""

    def __init__(self, pool: FetcherPool) -> None:
        self.pool = pool
        self.answers: list[Answer] = []
        self.given = self.most = 0

    def submit(self, wanted: list[Wanted]) -> None:
        self.given += 1
        self.pool.submit(ChunkJob(self.pool.next_number(), tuple(wanted)), DEMAND, self._done)

    def _done(self, answer: Answer) -> None:
        self.most = max(self.most, self.under_way)
        self.answers.append(answer)

    @property
    def under_way(self) -> int:
        return self.given - len(self.answers) - self.pool.queued

    async def all_done(self) -> None:
        await wait_until(lambda: len(self.answers) == self.given)
        for answer in self.answers:
            assert isinstance(answer, ChunksDone)
            assert {one.outcome for one in answer.fetched} == {Outcome.UNKEPT}


@asynccontextmanager
async def warm_pool(
    server: S3Server, proxy: HttpProxy, wanted: tuple[Store, list[Wanted]]
) -> AsyncIterator[FetcherPool]:
    """Yields a pool of one fetcher whose store is far, and that has found out how far."""
    store, chunks = wanted
    settings = server.settings(
        endpoint=proxy.endpoint, connections=CONNECTIONS, requests_in_flight=LEAST
    )
    lock_fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    pool = FetcherPool(
        store.url, store.identity, 1, lock_fd, 30, Metrics(), settings, ahead_places=AHEAD_PLACES
    )
    proxy.script.play_always(FAR)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.run)
        small = Counted(pool)
        for one in chunks:
            small.submit([one])
        await small.all_done()
        yield pool
        nursery.cancel_scope.cancel()
    os.close(lock_fd)


async def test_more_small_jobs_where_the_store_is_far(
    s3: S3Server, proxy: HttpProxy, wanted: tuple[Store, list[Wanted]]
) -> None:
    async with warm_pool(s3, proxy, wanted) as pool:
        small = Counted(pool)
        for one in wanted[1]:
            small.submit([one])
        await small.all_done()
        assert MOST / 2 < small.most <= MOST


async def test_no_more_large_jobs_than_told(
    s3: S3Server, proxy: HttpProxy, wanted: tuple[Store, list[Wanted]]
) -> None:
    async with warm_pool(s3, proxy, wanted) as pool:
        large = Counted(pool)
        per_job = SMALL_JOB_BYTES // CHUNK + 1
        for at in range(0, CHUNKS - per_job, per_job):
            large.submit(wanted[1][at : at + per_job])
        await large.all_done()
        assert large.given > LEAST
        assert large.most == LEAST
