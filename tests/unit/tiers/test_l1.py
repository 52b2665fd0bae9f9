"""L1 and its keeper over real files; the keeper's steps are called by hand where order matters."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import lmdb
import numpy as np
import pytest
import trio

from cachefs.daemon.cache import Cache
from cachefs.errors import CacheError
from cachefs.index.segments import INDEX_MASK, Segment, slot_class
from cachefs.metrics import Metrics
from cachefs.tiers.keeper import Keeper
from cachefs.units import KIB, MIB
from tests.caches import Plain, fill, opened_cache, plain_chunk, wait_until


def used_bytes(cache: Cache) -> int:
    """Return the disk space that all segments really take."""
    return sum(path.stat().st_blocks * 512 for path in cache.folder.segments_path.iterdir())


def read(cache: Cache, plain: Plain) -> bytes | None:
    placement = cache.l1.find(plain.ref.id)
    if placement is None:
        return None
    fd, position = cache.l1.place(placement.slot)
    return os.pread(fd, placement.plain_bytes, position)


async def keep(cache: Cache, times: int = 1) -> None:
    """Do what the keeper does when it wakes."""
    for _ in range(times):
        await cache.keeper._make_room()
        await cache.keeper.commit()


async def put(cache: Cache, plain: Plain) -> bool:
    """Bring a chunk in as a flight does, with the keeper's help; returns whether it was kept."""
    for _ in range(4):
        slots = cache.l1.take_free(plain.ref.plain_bytes, 1)
        if slots:
            fd, position = cache.l1.place(slots[0])
            os.pwrite(fd, plain.data, position)
            cache.l1.landed(slots[0], plain.ref.id, plain.ref.plain_bytes)
            return True
        await keep(cache)
    return False


@asynccontextmanager
async def running(cache: Cache) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cache.keeper.run)
        yield
        nursery.cancel_scope.cancel()


def test_a_new_l1_is_empty_and_takes_no_space(tmp_path: Path) -> None:
    with opened_cache(tmp_path / "c") as cache:
        assert (cache.l1.allocated_bytes, cache.l1.resident_chunks, cache.l1.resident_bytes) == (
            0,
            0,
            0,
        )
        assert cache.l1.take_free(4096, 1) == []
        assert cache.l1.wake.is_set()


def test_the_first_room_is_made_on_demand_and_announced(tmp_path: Path) -> None:
    async def main(cache: Cache) -> None:
        async with running(cache):
            slots = await cache.l1.reserve(64 * KIB, 3, wait_s=30)
        assert len(slots) == len(set(slots)) == 3
        assert cache.l1.allocated_bytes == MIB
        assert {slot_class(slot) for slot in slots} == {4}

    with opened_cache(tmp_path / "c") as cache:
        trio.run(main, cache)


def test_without_room_the_wait_for_it_ends(tmp_path: Path) -> None:
    async def main(cache: Cache) -> None:
        async with running(cache):
            assert await cache.l1.reserve(4 * MIB, 3, wait_s=0.3) == []

    with opened_cache(tmp_path / "c", quota_bytes=2 * MIB) as cache:
        trio.run(main, cache)


@pytest.mark.parametrize("quota_bytes", [MIB, 3 * MIB, 16 * MIB])
def test_the_quota_is_never_exceeded_by_two_classes_in_turn(
    tmp_path: Path, quota_bytes: int
) -> None:
    async def main(cache: Cache) -> None:
        for number in range(1500):
            size_bytes = 4 * KIB if number // 300 % 2 else 64 * KIB
            if size_bytes > 4 * KIB and number % 4:
                continue
            assert await put(cache, plain_chunk(number, size_bytes))
            assert cache.l1.allocated_bytes <= quota_bytes
            assert used_bytes(cache) <= quota_bytes + 64 * KIB  # the file systems' own blocks
        assert cache.l1.metrics.evicted_chunks > 0

    with opened_cache(tmp_path / "c", quota_bytes) as cache:
        trio.run(main, cache)


def test_classes_share_the_quota_by_use(tmp_path: Path) -> None:
    """Room goes to the class that is used; what is used again is not what is given up."""

    async def main(cache: Cache) -> None:
        small = [plain_chunk(number) for number in range(3000)]
        for plain in small:
            await put(cache, plain)
            await keep(cache)
        assert read(cache, small[-1]) == small[-1].data
        large = [plain_chunk(10_000 + number, MIB) for number in range(12)]
        for plain in large:
            assert await put(cache, plain)
            await keep(cache, 3)
        assert read(cache, large[-1]) == large[-1].data
        assert cache.l1.allocated_bytes <= cache.l1.quota_bytes
        held = sum(read(cache, plain) is not None for plain in large)
        assert held > 5  # most of the quota went to the class that was used last
        for number in range(20_000, 23_500):  # and comes back
            await put(cache, plain_chunk(number))
        assert sum(read(cache, plain) is not None for plain in large) < held
        for plain in (*small, *large):
            assert read(cache, plain) in {None, plain.data}

    with opened_cache(tmp_path / "c", 16 * MIB) as cache:
        trio.run(main, cache)


@pytest.mark.parametrize(
    ("quota_bytes", "chunk_bytes"),
    [(MIB, 64 * KIB), (MIB, 256 * KIB), (MIB, MIB), (4 * MIB, 4 * MIB), (16 * MIB, MIB)],
)
def test_a_quota_of_few_chunks_makes_progress(
    tmp_path: Path, quota_bytes: int, chunk_bytes: int
) -> None:
    async def main(cache: Cache) -> None:
        for number in range(40):
            plain = plain_chunk(number, chunk_bytes)
            assert await put(cache, plain), f"chunk {number} found no slot"
            assert read(cache, plain) == plain.data
            await keep(cache)
        assert cache.l1.allocated_bytes >= quota_bytes - chunk_bytes

    with opened_cache(tmp_path / "c", quota_bytes) as cache:
        trio.run(main, cache)


def test_what_was_used_last_stays(tmp_path: Path) -> None:
    async def main(cache: Cache) -> None:
        kept = plain_chunk(0)
        assert await put(cache, kept)
        for number in range(1, 1000):
            await put(cache, plain_chunk(number))
            placement = cache.l1.find(kept.ref.id)
            assert placement is not None
            cache.l1.touch(placement.slot)
        assert read(cache, kept) == kept.data
        assert read(cache, plain_chunk(1)) is None

    with opened_cache(tmp_path / "c", MIB) as cache:
        trio.run(main, cache)


def test_a_pinned_slot_is_never_used_for_another_chunk(tmp_path: Path) -> None:
    async def main(cache: Cache) -> None:
        held = [plain_chunk(number) for number in range(3)]
        slots = []
        for plain in held:
            assert await put(cache, plain)
            placement = cache.l1.find(plain.ref.id)
            assert placement is not None
            cache.l1.pin(placement.slot)
            slots.append(placement.slot)
        cache.l1.drop(held[1].ref.id, slots[1])  # found corrupt by another reader
        for number in range(100, 1200):
            await put(cache, plain_chunk(number))
        for plain, slot in zip(held, slots, strict=True):
            fd, position = cache.l1.place(slot)
            assert os.pread(fd, 4096, position) == plain.data
        assert read(cache, held[1]) is None
        assert read(cache, held[0]) is not None  # nor given up while it is read
        assert cache.l1.metrics.pinned_slots == 3
        for slot in slots:
            cache.l1.unpin(slot)
        assert cache.l1.metrics.pinned_slots == 0
        for number in range(2000, 3200):
            await put(cache, plain_chunk(number))
        for plain in held:
            assert read(cache, plain) is None

    with opened_cache(tmp_path / "c", MIB) as cache:
        trio.run(main, cache)


def test_a_slot_is_free_only_after_the_commit_that_emptied_it(tmp_path: Path) -> None:
    async def main(cache: Cache) -> None:
        plain = plain_chunk(1)
        await put(cache, plain)
        await keep(cache)
        placement = cache.l1.find(plain.ref.id)
        assert placement is not None
        slots = cache.l1.class_for(4096)
        cache.l1.drop(plain.ref.id, placement.slot)
        assert placement.slot not in slots.free
        batch = cache.l1.residency.take_batch()
        assert placement.slot not in slots.free
        cache.l1.residency.committed(batch, failed=True)
        await cache.keeper.commit()
        assert placement.slot in slots.free

    with opened_cache(tmp_path / "c") as cache:
        trio.run(main, cache)


def test_an_index_that_cannot_be_written_frees_nothing_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    async def main(cache: Cache) -> None:
        gone, kept = plain_chunk(1), plain_chunk(2)
        await put(cache, gone)
        await keep(cache)
        placement = cache.l1.find(gone.ref.id)
        assert placement is not None
        cache.l1.drop(gone.ref.id, placement.slot)
        await put(cache, kept)

        def fail(*_: object) -> None:
            raise lmdb.DiskError("No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(cache.l1.residency, "commit", fail)
            assert not await cache.keeper.commit()
        assert placement.slot not in cache.l1.class_for(4096).free
        assert read(cache, kept) == kept.data
        assert await cache.keeper.commit()
        assert placement.slot in cache.l1.class_for(4096).free

    with opened_cache(tmp_path / "c") as cache:
        trio.run(main, cache)
    with opened_cache(tmp_path / "c") as cache:
        assert read(cache, plain_chunk(2)) == plain_chunk(2).data
        assert read(cache, plain_chunk(1)) is None


def test_a_stop_in_the_middle_of_growing_loses_no_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk that was found corrupt must not be back after a clean stop."""
    plain = plain_chunk(1)

    async def main(cache: Cache) -> None:
        await put(cache, plain)
        await keep(cache)
        placement = cache.l1.find(plain.ref.id)
        assert placement is not None
        real = Segment.allocate
        async with trio.open_nursery() as nursery:

            def slow(self: Segment, extent: int) -> None:
                trio.from_thread.run_sync(nursery.cancel_scope.cancel)
                real(self, extent)

            monkeypatch.setattr(Segment, "allocate", slow)
            nursery.start_soon(cache.keeper.run)
            cache.l1.drop(plain.ref.id, placement.slot)
            cache.l1.take_free(64 * KIB, 1)  # another class: the keeper grows it

    with opened_cache(tmp_path / "c") as cache:
        trio.run(main, cache)
    with opened_cache(tmp_path / "c") as cache:
        assert not cache.l1.epoch.unclean_start
        assert cache.l1.find(plain.ref.id) is None


def test_a_disk_that_does_not_grow_leaves_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def main(cache: Cache) -> None:
        assert await put(cache, plain_chunk(0))
        monkeypatch.setattr(Segment, "allocate", _refuse)
        for number in range(1, 600):
            assert await put(cache, plain_chunk(number))
        assert read(cache, plain_chunk(599)) == plain_chunk(599).data
        assert cache.l1.allocated_bytes == MIB
        assert await cache.l1.reserve(MIB, 1, wait_s=0) == []
        assert cache.l1.metrics.l1_errors == 1  # it is not asked again at once
        assert any("L1 does not grow" in message for message in caplog.messages)

    with opened_cache(tmp_path / "c", 16 * MIB) as cache:
        trio.run(main, cache)


def _refuse(*_: object) -> None:
    raise CacheError("no")


def test_l1_shrinks_before_it_takes_the_last_free_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main(cache: Cache) -> None:
        for number in range(2000):
            assert await put(cache, plain_chunk(number))
        before = cache.l1.allocated_bytes
        assert before >= 7 * MIB
        others_bytes = 3 * MIB + 1
        monkeypatch.setattr(
            cache.l1,
            "free_disk_bytes",
            lambda: 10 * MIB - others_bytes - (used_bytes(cache) - before),
        )
        cache.keeper._floor = 10 * MIB
        await cache.keeper._watch_disk()
        assert cache.l1.allocated_bytes == before - 4 * MIB
        assert used_bytes(cache) <= before - 4 * MIB + 64 * KIB
        for number in range(2000, 2300):
            await put(cache, plain_chunk(number))
        assert cache.l1.allocated_bytes == before - 4 * MIB  # and does not grow again

    with opened_cache(tmp_path / "c", 16 * MIB) as cache:
        trio.run(main, cache)


def test_a_floor_that_cannot_be_kept_empties_l1_and_ends(tmp_path: Path) -> None:
    async def main(cache: Cache) -> None:
        for number in range(600):
            assert await put(cache, plain_chunk(number))
        cache.keeper._floor = 2**60
        await cache.keeper._watch_disk()
        assert cache.l1.allocated_bytes == cache.l1.resident_chunks == 0
        assert used_bytes(cache) <= 64 * KIB
        assert not await put(cache, plain_chunk(1))

    with opened_cache(tmp_path / "c", 16 * MIB) as cache:
        trio.run(main, cache)


def test_a_disk_that_says_nothing_of_itself_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> int:
        raise OSError(5, "Input/output error")

    with opened_cache(tmp_path / "c") as cache:
        trio.run(put, cache, plain_chunk(1))
        monkeypatch.setattr(cache.l1, "free_disk_bytes", fail)
        trio.run(cache.keeper._watch_disk)
        assert cache.l1.resident_chunks == 1


def test_space_that_cannot_be_given_back_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with opened_cache(tmp_path / "c") as cache:
        trio.run(put, cache, plain_chunk(1))
        monkeypatch.setattr(Segment, "release", _refuse)
        cache.keeper._floor = 2**60
        trio.run(cache.keeper._watch_disk)
        assert "no" in caplog.messages


def test_an_extent_in_use_is_not_given_back(tmp_path: Path) -> None:
    async def main(cache: Cache) -> None:
        await put(cache, plain_chunk(1))
        placement = cache.l1.find(plain_chunk(1).ref.id)
        assert placement is not None
        [filling] = cache.l1.take_free(4096, 1)
        cache.keeper._floor = 2**60
        await cache.keeper._watch_disk()
        assert read(cache, plain_chunk(1)) is not None
        cache.l1.give_back(filling)
        cache.l1.pin(placement.slot)
        await cache.keeper._watch_disk()
        assert read(cache, plain_chunk(1)) is not None
        cache.l1.unpin(placement.slot)
        await cache.keeper._watch_disk()
        assert read(cache, plain_chunk(1)) is None

    with opened_cache(tmp_path / "c") as cache:
        trio.run(main, cache)


# -------------------------------------------------------------------------------- start and stop
def test_a_clean_restart_keeps_all_chunks_and_their_order(tmp_path: Path) -> None:
    plains = [plain_chunk(number) for number in range(200)]

    async def first(cache: Cache) -> None:
        for plain in plains:
            assert await put(cache, plain)
        for plain in plains[:50]:
            placement = cache.l1.find(plain.ref.id)
            assert placement is not None
            cache.l1.touch(placement.slot)

    async def second(cache: Cache) -> None:
        assert cache.l1.resident_chunks == 200
        for number in range(1000, 1100):
            assert await put(cache, plain_chunk(number))
        held = [read(cache, plain) is not None for plain in plains]
        assert all(held[:50])
        assert held[50:] == sorted(held[50:])  # the oldest went first
        assert not all(held)

    with opened_cache(tmp_path / "c", MIB) as cache:
        trio.run(first, cache)
        free_before = cache.l1.class_for(4096).free
    with opened_cache(tmp_path / "c", MIB) as cache:
        assert not cache.l1.epoch.unclean_start
        for plain in plains:
            assert read(cache, plain) == plain.data
        assert set(cache.l1.class_for(4096).free) == set(free_before)
        trio.run(second, cache)


def test_after_a_kill_what_was_committed_is_here_and_suspect(tmp_path: Path) -> None:
    async def main(cache: Cache) -> None:
        await put(cache, plain_chunk(1))
        await keep(cache)
        await put(cache, plain_chunk(2))

    with opened_cache(tmp_path / "c", clean=False) as cache:
        trio.run(main, cache)
    with opened_cache(tmp_path / "c") as cache:
        assert cache.l1.epoch.unclean_start
        placement = cache.l1.find(plain_chunk(1).ref.id)
        assert placement is not None
        assert cache.l1.is_suspect(placement)
        assert cache.l1.locate_hit(plain_chunk(1).ref.id) is None
        assert cache.l1.find(plain_chunk(2).ref.id) is None
        cache.l1.verified(plain_chunk(1).ref.id, placement)
        assert cache.l1.locate_hit(plain_chunk(1).ref.id) is not None


@pytest.mark.parametrize("damage", [b"", b"noise", b"\x93NUMPY", b"PK\x03\x04", "shape", "longer"])
def test_a_lost_order_of_use_costs_no_chunk(tmp_path: Path, damage: bytes | str) -> None:
    with opened_cache(tmp_path / "c") as cache:
        trio.run(put, cache, plain_chunk(1))
    path = tmp_path / "c" / "recency-4096.npy"
    assert path.exists()
    if isinstance(damage, bytes):
        path.write_bytes(damage)
    else:
        np.save(path, np.ones((3, 3)) if damage == "shape" else np.ones(10_000, np.uint32))
    with opened_cache(tmp_path / "c") as cache:
        assert read(cache, plain_chunk(1)) == plain_chunk(1).data


def test_extents_of_an_earlier_run_that_hold_nothing_do_not_add_to_the_quota(
    tmp_path: Path,
) -> None:
    """Disk space that was taken and never used is in no record: it is given back at the start."""

    async def main(cache: Cache) -> None:
        await put(cache, plain_chunk(1))
        await cache.keeper._grow(cache.l1.class_for(4096))
        await cache.keeper._grow(cache.l1.class_for(64 * KIB))

    for clean in (True, False):
        with opened_cache(tmp_path / "c", clean=clean) as cache:
            trio.run(main, cache)
            assert used_bytes(cache) >= 3 * MIB
        with opened_cache(tmp_path / "c") as cache:
            assert cache.l1.allocated_bytes == MIB
            assert used_bytes(cache) <= cache.l1.allocated_bytes + 64 * KIB


def test_a_smaller_quota_is_kept_at_the_next_start(tmp_path: Path) -> None:
    async def main(cache: Cache) -> None:
        for number in range(3000):
            assert await put(cache, plain_chunk(number))

    with opened_cache(tmp_path / "c", 16 * MIB) as cache:
        trio.run(main, cache)
    with opened_cache(tmp_path / "c", 4 * MIB) as cache:
        trio.run(cache.keeper._watch_disk)
        assert cache.l1.allocated_bytes <= 4 * MIB
        assert used_bytes(cache) <= 4 * MIB + 64 * KIB
        assert cache.l1.resident_chunks > 500


def test_a_chunk_that_came_in_another_way_is_not_kept_twice(tmp_path: Path) -> None:
    async def main(cache: Cache) -> None:
        await put(cache, plain_chunk(1))
        slot = fill(cache, plain_chunk(1))
        placement = cache.l1.find(plain_chunk(1).ref.id)
        assert placement is not None
        assert slot == placement.slot
        assert cache.l1.resident_chunks == 1
        assert not cache.l1.class_for(4096).filling

    with opened_cache(tmp_path / "c") as cache:
        trio.run(main, cache)


def test_the_keeper_counts_and_stops_when_it_is_told(tmp_path: Path) -> None:
    async def main(cache: Cache) -> None:
        async with running(cache):
            [slot] = await cache.l1.reserve(4096, 1, 30)
            cache.l1.landed(slot, plain_chunk(1).ref.id, 4096)
            await wait_until(lambda: cache.l1.metrics.commits > 0)
        assert slot & INDEX_MASK == 0

    with opened_cache(tmp_path / "c") as cache:
        trio.run(main, cache)
        assert isinstance(cache.l1.metrics, Metrics)
        assert isinstance(cache.keeper, Keeper)


@pytest.mark.parametrize("fails", ["commit", "fdatasync"])
def test_a_stop_that_did_not_reach_the_disk_is_not_clean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fails: str
) -> None:
    def fail(*_: object) -> None:
        raise lmdb.DiskError("full") if fails == "commit" else OSError(5, "Input/output error")

    with monkeypatch.context() as patch, opened_cache(tmp_path / "c") as cache:
        trio.run(put, cache, plain_chunk(1))
        if fails == "commit":
            patch.setattr(cache.l1.residency, "commit", fail)
        else:
            patch.setattr(os, "fdatasync", fail)
    assert len(caplog.messages) == 1
    with opened_cache(tmp_path / "c") as cache:
        assert cache.l1.epoch.unclean_start


async def _fill_l1(cache: Cache, chunks: list[Plain]) -> None:
    for plain in chunks:
        assert await put(cache, plain)
    await keep(cache)


def test_slots_of_damaged_records_are_used_again(tmp_path: Path) -> None:
    """A record that is damaged is no record; its slot must not be lost with it."""
    with opened_cache(tmp_path / "c", MIB) as cache:
        old = [plain_chunk(seed, 64 * KIB) for seed in range(8)]
        trio.run(_fill_l1, cache, old)
        database = cache.database
        with database.env.begin(write=True, db=database.residency) as txn:
            for plain in old:
                txn.put(plain.ref.id, b"\0" * 16)
        trio.run(cache.keeper.commit)
        cache.l1.residency.committed(cache.l1.residency.take_batch())
        assert [read(cache, plain) for plain in old] == [None] * len(old)
        new = [plain_chunk(seed, 64 * KIB) for seed in range(100, 140)]
        trio.run(_fill_l1, cache, new)
        assert cache.l1.allocated_bytes <= MIB
        assert cache.l1.resident_chunks <= 16
        assert read(cache, new[-1]) == new[-1].data


def test_nobody_waits_for_room_that_cannot_come(tmp_path: Path) -> None:
    async def ask() -> float:
        async with running(cache):
            await cache.l1.reserve(64 * KIB, 1, 5.0)  # the keeper has to find out once
            began = trio.current_time()
            assert await cache.l1.reserve(64 * KIB, 1, 5.0) == []
            return trio.current_time() - began

    with opened_cache(tmp_path / "c", MIB, free_floor_bytes=64 << 40) as cache:
        assert trio.run(ask) < 1.0
