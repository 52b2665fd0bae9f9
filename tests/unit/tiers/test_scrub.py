"""What the scrub does at its own pace; that it heals is shown by the tests of the reader."""

import os
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest
import trio
from trio.testing import MockClock

from cachefs.daemon.cache import Cache
from cachefs.tiers import scrub as module
from cachefs.tiers.scrub import Scrub
from tests.caches import Plain, fill, opened_cache, plain_chunk, wait_until

PLAINS = [plain_chunk(number) for number in range(200)]


def filled(cache: Cache) -> None:
    slots = cache.l1.class_for(4096)
    for extent in range(1):
        slots.segment.allocate(extent)
        slots.add_extent(extent)
    for plain in PLAINS:
        fill(cache, plain)
    trio.run(cache.keeper.commit)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    with opened_cache(tmp_path / "cache") as cache:
        filled(cache)
        yield cache


def damage(cache: Cache, plain: Plain) -> None:
    placement = cache.l1.find(plain.ref.id)
    assert placement is not None
    fd, position = cache.l1.place(placement.slot)
    os.pwrite(fd, b"!", position + 100)


async def test_all_chunks_are_read_once_and_bad_ones_dropped(cache: Cache) -> None:
    for number in (0, 64, 65, 199):
        damage(cache, PLAINS[number])
    assert await Scrub(cache.l1, 0, cache.l1.metrics).scrub_once() == (200, 4)
    await cache.keeper.commit()
    assert await Scrub(cache.l1, 0, cache.l1.metrics).scrub_once() == (196, 0)
    assert cache.l1.resident_chunks == 196
    assert cache.l1.metrics.pinned_slots == 0


async def test_a_chunk_that_cannot_be_read_is_dropped(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = os.pread
    left = [1]

    def fail(fd: int, size_bytes: int, offset: int) -> bytes:
        if left.pop() if left else False:
            raise OSError(5, "Input/output error")
        return real(fd, size_bytes, offset)

    monkeypatch.setattr(os, "pread", fail)
    assert await Scrub(cache.l1, 0, cache.l1.metrics).scrub_once() == (200, 1)
    assert any("cannot be read: Input/output error" in message for message in caplog.messages)


async def test_what_moved_or_went_meanwhile_is_left_out(cache: Cache) -> None:
    placement = cache.l1.find(PLAINS[3].ref.id)
    assert placement is not None
    cache.l1.drop(PLAINS[3].ref.id, placement.slot)
    assert await Scrub(cache.l1, 0, cache.l1.metrics).scrub_once() == (199, 0)


def test_suspicion_ends_when_all_was_seen(tmp_path: Path) -> None:
    with opened_cache(tmp_path / "cache", clean=False) as cache:
        filled(cache)
        damage(cache, PLAINS[7])
    with opened_cache(tmp_path / "cache") as cache:
        assert cache.l1.epoch.suspect_before == 2
        assert cache.l1.locate_hit(PLAINS[0].ref.id) is None
        assert trio.run(Scrub(cache.l1, 0, cache.l1.metrics).scrub_once) == (200, 1)
        assert cache.l1.epoch.suspect_before == 0
        assert cache.l1.locate_hit(PLAINS[0].ref.id) is not None
        assert cache.l1.locate_hit(PLAINS[7].ref.id) is None
    with opened_cache(tmp_path / "cache") as cache:
        assert cache.l1.epoch.suspect_before == 0
        assert cache.l1.resident_chunks == 199


async def test_the_rate_is_kept(cache: Cache, autojump_clock: MockClock) -> None:
    began_s = trio.current_time()
    await Scrub(cache.l1, 0, cache.l1.metrics).scrub_once(4096 * 10)
    assert trio.current_time() - began_s >= 20


async def test_passes_come_one_after_the_other(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PAUSE_BETWEEN_PASSES_S", 0.01)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Scrub(cache.l1, 2**40, cache.l1.metrics).run)
        await wait_until(lambda: cache.l1.metrics.scrub_passes >= 2)
        nursery.cancel_scope.cancel()


async def test_a_rate_of_zero_is_no_scrub(cache: Cache) -> None:
    await Scrub(cache.l1, 0, cache.l1.metrics).run()
    assert cache.l1.metrics.scrub_passes == 0


async def test_a_full_disk_ends_neither_scrub_nor_daemon(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise lmdb.DiskError("No space left on device")

    monkeypatch.setattr(cache.l1.epoch, "trust_all", fail)
    assert await Scrub(cache.l1, 0, cache.l1.metrics).scrub_once() == (200, 0)
