"""Profiles that are taught while images open and close; a real store, a real L1, a real index."""

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import trio

from cachefs.daemon.cache import Cache
from cachefs.index.manifest_table import ManifestTable
from cachefs.index.profiles import ProfileRows
from cachefs.policy.prefetch.arms import learning_arms
from cachefs.policy.prefetch.learner import SECTIONS, Rows
from cachefs.policy.prefetch.profile import Profile, from_bytes, to_bytes
from cachefs.prefetch.image import OpenImage
from cachefs.prefetch.prefetcher import Prefetcher
from cachefs.prefetch.profiles import Profiles
from cachefs.store.store import Store
from cachefs.tiers.fetcher import Fetcher
from cachefs.units import KIB, MIB
from tests.ahead import INODE, records, run_of, running_ahead
from tests.caches import HandPool, opened_cache, table_of, wait_until
from tests.stores import import_bytes, new_store

CHUNK = 64 * KIB
CHUNKS = 64
NAME = "guest"


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    with opened_cache(tmp_path / "cache", 16 * MIB) as cache:
        yield cache


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return new_store(tmp_path / "store")


@pytest.fixture
def table(store: Store, tmp_path: Path) -> Iterator[ManifestTable]:
    import_bytes(store, np.random.default_rng(1).bytes(CHUNKS * CHUNK), chunk_bytes=CHUNK)
    table = table_of(store, tmp_path)
    yield table
    table.close()


@dataclass
class Bench:
    """Profiles over a prefetcher, whose images the test opens."""

    profiles: Profiles
    prefetcher: Prefetcher
    rows: ProfileRows
    table: ManifestTable

    def open(self) -> OpenImage:
        self.prefetcher.opened(INODE, self.table)
        return self.prefetcher.images[INODE]

    def close(self) -> None:
        self.prefetcher._forget(self.prefetcher.images[INODE])

    def kept(self) -> Profile | None:
        data = self.rows.get(NAME)
        return from_bytes(data) if data is not None else None

    def keep(self, sections: dict[str, Rows]) -> None:
        """Let this be what an earlier start left."""
        self.rows.put(NAME, to_bytes(Profile(NAME, CHUNK, sections)), 1.0)


@asynccontextmanager
async def at_work(cache: Cache, store: Store, table: ManifestTable) -> AsyncIterator[Bench]:
    pool = HandPool(Fetcher(store.url, store.identity))
    async with running_ahead(cache, pool, table) as ahead:
        for arm in learning_arms():
            ahead.prefetcher.add_arm(arm)
        rows = ProfileRows(cache.database)
        profiles = Profiles(rows, None, ahead.prefetcher, lambda _: NAME)
        ahead.prefetcher.on_opened = profiles.opened
        ahead.prefetcher.on_forgotten = profiles.closed
        async with trio.open_nursery() as nursery:
            nursery.start_soon(profiles.run)
            yield Bench(profiles, ahead.prefetcher, rows, table)
            nursery.cancel_scope.cancel()


def known_of(table: ManifestTable, count: int) -> dict[str, Rows]:
    """Return what a start of the first chunks leaves; of the recurrence arm 16 slices."""
    image = OpenImage(INODE, table)
    replay = np.zeros(count, SECTIONS["replay"])
    replay["key"], replay["place"], replay["which"] = image.keys(0, count), np.arange(count), 1
    recurrence = np.zeros(1 << 16, SECTIONS["recurrence"])
    recurrence["key"] = np.resize(replay["key"], 1 << 16)
    return {"replay": replay, "recurrence": recurrence}


async def test_a_start_that_ends_before_it_was_taught_leaves_what_was_known(
    cache: Cache, store: Store, table: ManifestTable
) -> None:
    async with at_work(cache, store, table) as bench:
        bench.keep(known_of(table, 40))
        before = bench.kept()
        bench.open()
        bench.prefetcher.observe(records([(50 * CHUNK, CHUNK)]))
        bench.close()
        bench.open()
        await bench.profiles.save()  # it has been told of nothing yet
        assert before is not None
        after = bench.kept()
        assert after is not None
        for name, rows in before.sections.items():
            assert np.array_equal(after.sections[name], rows)


async def test_a_start_that_ends_while_it_is_taught_leaves_what_was_known(
    cache: Cache, store: Store, table: ManifestTable
) -> None:
    async with at_work(cache, store, table) as bench:
        bench.keep(known_of(table, 40))
        image = bench.open()
        arms = {arm.name: arm for arm in bench.prefetcher.arms}
        recurrence = arms["recurrence"]
        while recurrence.learned(image) is None:  # type: ignore[attr-defined]
            await trio.lowlevel.checkpoint()
        taught = recurrence.learned(image)  # type: ignore[attr-defined]
        assert image not in bench.profiles._taught
        bench.close()
        await trio.sleep(0.05)
        await bench.profiles.save()
        kept = bench.kept()
        assert kept is not None
        assert len(taught) < len(kept.sections["recurrence"])
        assert np.array_equal(kept.sections["recurrence"], known_of(table, 40)["recurrence"])


async def test_what_was_taught_is_kept_with_what_came_to_it(
    cache: Cache, store: Store, table: ManifestTable
) -> None:
    async with at_work(cache, store, table) as bench:
        bench.keep(known_of(table, 40))
        image = bench.open()
        await wait_until(lambda: image in bench.profiles._taught)
        assert image.plan or cache.l1.metrics.ahead_requests  # the replay
        reads = run_of(20 * CHUNK, CHUNKS * CHUNK, CHUNK)
        bench.prefetcher.observe(records(reads, begin_s=time.monotonic()))
        image.plan.clear()
        bench.close()
        await bench.profiles.save()
        kept = bench.kept()
        assert kept is not None
        assert set(kept.sections["replay"]["place"].tolist()) == set(range(CHUNKS))
        assert len(kept.sections["replay"]) == CHUNKS
