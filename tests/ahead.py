"""A prefetcher over a real store and a real L1, told of reads by the test."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import trio

from cachefs.config import PrefetchSection
from cachefs.daemon.cache import Cache
from cachefs.index.manifest_table import ManifestTable
from cachefs.policy.prefetch.pace import Pace
from cachefs.prefetch.gather import Limits
from cachefs.prefetch.jobs import AheadJobs
from cachefs.prefetch.prefetcher import Prefetcher
from cachefs.reader import Reader
from cachefs.tiers.board import ACCESS_DTYPE
from cachefs.tiers.jobs import ChunkJob
from cachefs.tiers.stack import Stack
from cachefs.units import MIB
from tests.caches import HandPool

INODE = 7


def records(
    reads: list[tuple[int, int]],
    *,
    inode: int = INODE,
    reader: int = 1,
    by_lane: bool = True,
    begin_s: float = 0.0,
) -> npt.NDArray[np.void]:
    """Return reads (offset, length) as the lane notes them, a millisecond apart."""
    made = np.zeros(len(reads), ACCESS_DTYPE)
    for number, (offset, length) in enumerate(reads):
        at_ns = int(begin_s * 1e9) + number * 1_000_000
        made[number]["at_ns"], made[number]["inode"], made[number]["pid"] = at_ns, inode, reader
        made[number]["offset"], made[number]["length"] = offset, length
        made[number]["by_lane"] = by_lane
    return made


def run_of(begin: int, end: int, size_bytes: int) -> list[tuple[int, int]]:
    return [(at, size_bytes) for at in range(begin, end, size_bytes)]


@dataclass
class Ahead:
    """A prefetcher with all that it works on."""

    prefetcher: Prefetcher
    stack: Stack
    reader: Reader
    pool: HandPool
    cache: Cache
    table: ManifestTable

    def jobs_ahead(self) -> list[ChunkJob]:
        return [job for job in self.pool.chunk_jobs() if job.is_ahead]

    def answer_all(self) -> None:
        """Let the fetcher do all jobs that there are."""
        while self.pool.jobs:
            self.pool.answer()

    async def answer_until_calm(self) -> None:
        """Let the fetcher do all jobs, and those that follow, until none does."""
        calm = 0
        while calm < 3:
            calm = 0 if self.pool.jobs else calm + 1
            self.answer_all()
            await trio.sleep(0.01)


@asynccontextmanager
async def running_ahead(
    cache: Cache,
    pool: HandPool,
    table: ManifestTable,
    *,
    places: int = 2,
    limits: Limits | None = None,
    deadline_s: float = 30,
    settings: PrefetchSection | None = None,
) -> AsyncIterator[Ahead]:
    """Run a prefetcher and a keeper; at the end nothing may be under way."""
    settings = settings or PrefetchSection(l1_share=0.5)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cache.keeper.run)
        metrics = cache.l1.metrics
        stack = Stack(cache.l1, pool, nursery, metrics)
        prefetcher = Prefetcher(
            settings,
            cache.l1,
            metrics,
            AheadJobs(cache.l1, stack, metrics, Pace(places, settings.bytes_per_s)),
            limits or Limits(MIB, MIB),
            lambda inode: table if inode == INODE else None,
            lambda: None,
        )
        stack.on_demand = lambda is_miss: prefetcher.wake(is_miss=is_miss)
        nursery.start_soon(prefetcher.run)
        reader = Reader(cache.l1, stack, metrics, deadline_s, verify_reads=False)
        yield Ahead(prefetcher, stack, reader, pool, cache, table)
        nursery.cancel_scope.cancel()
    while pool.jobs:
        pool.answer()
    assert (metrics.ahead_jobs, metrics.flights, metrics.pinned_slots) == (0, 0, 0)
