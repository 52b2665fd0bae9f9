"""Profiles that are here before anybody opens their images; a real store and a real index."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import trio
import trio.testing

from cachefs.errors import StoreUnavailableError
from cachefs.index.database import open_database
from cachefs.index.profiles import ProfileRows
from cachefs.policy.prefetch.learner import SECTIONS
from cachefs.policy.prefetch.profile import Profile, from_bytes, to_bytes
from cachefs.prefetch.early import MOST_IMAGES, EarlyProfiles
from cachefs.store.store import Store
from cachefs.tiers.fetcher import Fetcher
from cachefs.tiers.jobs import Failed, ProfileJob
from cachefs.tiers.profiles import share_profile
from tests.caches import HandPool, PromptPool, wait_until
from tests.stores import new_store


@pytest.fixture
def rows(tmp_path: Path) -> Iterator[ProfileRows]:
    (tmp_path / "segments").mkdir()
    database, _ = open_database(tmp_path / "index", tmp_path / "segments")
    yield ProfileRows(database)
    database.close()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return new_store(tmp_path / "store")


def share(store: Store, name: str) -> None:
    known = np.zeros(1, SECTIONS["replay"])
    known["key"], known["which"] = 7, 1
    share_profile(store, name, to_bytes(Profile(name, 65536, {"replay": known})))


def asked(pool: HandPool) -> list[str]:
    return [job.name for job, _, _ in pool.jobs if isinstance(job, ProfileJob)]


async def test_the_store_is_asked_once_for_the_newest_images_that_this_host_knows_nothing_of(
    rows: ProfileRows, store: Store
) -> None:
    for name in ("a", "mine", "later"):
        share(store, name)
    rows.put("mine", b"what this host knows", 1.0)
    pool = HandPool(Fetcher(store.url, store.identity))
    names = ["a", "mine", "unknown"]
    early = EarlyProfiles(rows, pool, lambda: names)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(early.run)
        await wait_until(lambda: len(pool.jobs) == 2)
        assert sorted(asked(pool)) == ["a", "unknown"]
        while pool.jobs:
            pool.answer()
        names.insert(0, "later")
        early.shown()
        await wait_until(lambda: bool(pool.jobs))
        assert asked(pool) == ["later"]
        pool.answer()
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert [early.take(name) is not None for name in names] == [True, True, False, False]
    assert early.take("a") is None  # it was taken


async def test_an_outage_is_no_profile_and_many_images_are_a_few_requests(
    rows: ProfileRows, store: Store
) -> None:
    share(store, "image0")
    pool = HandPool(Fetcher(store.url, store.identity))
    early = EarlyProfiles(rows, pool, lambda: [f"image{number}" for number in range(1_000)])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(early.run)
        answered = 0
        while answered < MOST_IMAGES:
            await wait_until(lambda: bool(pool.jobs))
            assert len(pool.jobs) <= 4
            job = pool.jobs[0][0]
            assert isinstance(job, ProfileJob)
            is_known = job.name == "image0"
            pool.answer(None if is_known else Failed(job.number, StoreUnavailableError("away")))
            answered += 1
        await trio.testing.wait_all_tasks_blocked()
        assert not pool.jobs
        nursery.cancel_scope.cancel()
    data = early.take("image0")
    assert data is not None
    assert from_bytes(data).image == "image0"
    assert early.take("image1") is None


async def test_what_has_no_room_is_asked_for_when_it_is_opened(
    rows: ProfileRows, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cachefs.prefetch.early._MOST_BYTES", 500)
    names = [f"image{number}" for number in range(8)]
    for name in names:
        share(store, name)
    pool = PromptPool(Fetcher(store.url, store.identity))
    early = EarlyProfiles(rows, pool, lambda: names)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(early.run)
        await wait_until(lambda: 0 < early._room_bytes() < 250)
        await trio.testing.wait_all_tasks_blocked(0.05)
        nursery.cancel_scope.cancel()
    kept = [data for name in names if (data := early.take(name)) is not None]
    assert 0 < sum(map(len, kept)) <= 500
    assert len(kept) < len(names)
