"""The reader over a real store and a real L1; a real fetcher answers in this process."""

import errno
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from cachefs.daemon.cache import Cache
from cachefs.errors import CorruptError, DeadlineError, NotFoundError, TableDamagedError
from cachefs.index.manifest_table import ManifestTable
from cachefs.index.segments import INDEX_MASK, slot_class
from cachefs.reader import MAX_READ_BYTES, Reader
from cachefs.store.store import Store
from cachefs.tiers.fetcher import Fetcher
from cachefs.tiers.flight import Flight
from cachefs.tiers.jobs import Outcome
from cachefs.tiers.scrub import Scrub
from cachefs.tiers.stack import Stack
from cachefs.units import KIB, MIB
from tests.caches import HandPool, PromptPool, opened_cache, table_of, wait_until
from tests.stores import CHUNK, flip, import_bytes, new_store, pack_paths
from tests.timing import Stopwatch

RANDOM = Random(4)
PART = RANDOM.randbytes(5 * CHUNK)
DATA = PART + bytes(3 * CHUNK) + PART[: 2 * CHUNK] + RANDOM.randbytes(3 * CHUNK + 123)
"""Data, zeros, duplicates, and a short end."""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = new_store(tmp_path)
    import_bytes(store, DATA)
    return store


@pytest.fixture
def table(store: Store, tmp_path: Path) -> Iterator[ManifestTable]:
    table = table_of(store, tmp_path)
    yield table
    table.close()


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    with opened_cache(tmp_path / "cache", 4 * MIB) as cache:
        yield cache
        metrics = cache.l1.metrics
        assert (metrics.waiting_reads, metrics.flights, metrics.pinned_slots) == (0, 0, 0)


@asynccontextmanager
async def reading(
    cache: Cache, pool: HandPool, deadline_s: float = 30, *, verify_reads: bool = False
) -> AsyncIterator[Reader]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cache.keeper.run)
        stack = Stack(cache.l1, pool, nursery, cache.l1.metrics)
        yield Reader(cache.l1, stack, cache.l1.metrics, deadline_s, verify_reads=verify_reads)
        nursery.cancel_scope.cancel()


def prompt(store: Store) -> PromptPool:
    return PromptPool(Fetcher(store.url, store.identity))


def flip_in_slot(cache: Cache, chunk_id: bytes, offset: int = 0) -> None:
    placement = cache.l1.find(chunk_id)
    assert placement is not None
    slots = cache.l1.classes[slot_class(placement.slot)]
    flip(slots.segment.path, (placement.slot & INDEX_MASK) * slots.segment.slot_bytes + offset)


async def committed(cache: Cache) -> None:
    """Wait until the index has all that L1 knows."""
    await wait_until(lambda: not (cache.l1.residency._new or cache.l1.residency._committing))


READS = [
    (0, len(DATA)),
    (0, 1),
    (CHUNK - 1, 2),
    (4 * CHUNK + 7, 5 * CHUNK),
    (5 * CHUNK, 3 * CHUNK),
    (len(DATA) - 1, 1),
    (len(DATA) - 10, CHUNK),
    (len(DATA), 10),
    (len(DATA) + 5 * CHUNK, 10),
    (3, 0),
]


@pytest.mark.parametrize("verify_reads", [False, True])
async def test_bytes_are_right_cold_and_warm(
    store: Store, table: ManifestTable, cache: Cache, verify_reads: bool
) -> None:
    async with reading(cache, prompt(store), verify_reads=verify_reads) as reader:
        for _ in range(2):
            for offset, size_bytes in READS:
                assert await reader.read(table, offset, size_bytes) == DATA[offset:][:size_bytes]
    assert cache.l1.metrics.l3_chunks == 9  # once each: five, and four behind the duplicates
    assert cache.l1.metrics.read_errors == 0


async def test_a_hit_takes_no_turn_of_the_loop_and_a_miss_none_of_its_time(
    store: Store, table: ManifestTable, cache: Cache
) -> None:
    async with reading(cache, prompt(store)) as reader:
        assert reader.read_hit(table, 0, 100) is None
        before = cache.l1.metrics.to_dict()
        await reader.read(table, 0, len(DATA))
        for offset, size_bytes in READS:
            assert (
                bytes(reader.read_hit(table, offset, size_bytes) or b"")
                == DATA[offset:][:size_bytes]
            )
        after = cache.l1.metrics.to_dict()
        assert after["reads"] - before["reads"] == 1 + len(READS)
        assert after["zero_chunks"] > 0
    cache.l1.epoch.suspect_before = cache.l1.epoch.now + 1
    async with reading(cache, prompt(store)) as reader:
        assert reader.read_hit(table, 0, 100) is None
    async with reading(cache, prompt(store), verify_reads=True) as reader:
        assert reader.read_hit(table, 0, 100) is None


async def test_what_came_before_its_read_had_its_turn_is_one_step_too(
    cache: Cache, store: Store, table: ManifestTable
) -> None:
    async with reading(cache, prompt(store)) as reader:
        await reader.read(table, 0, len(DATA))
        metrics = cache.l1.metrics
        hits, zeros, misses = metrics.l1_hit_chunks, metrics.zero_chunks, metrics.miss_chunks
        for offset, size in READS:
            data = await reader.read(table, offset, size)
            assert isinstance(data, memoryview)  # the buffer of hits: no chunk was read alone
            assert bytes(data) == DATA[offset : offset + size]
        touched = [
            index
            for offset, size in READS
            for index in range(offset // CHUNK, -(-min(offset + size, len(DATA)) // CHUNK))
            if size and offset < len(DATA)
        ]
        zero = sum(5 <= index < 8 for index in touched)
        assert metrics.zero_chunks - zeros == zero > 0
        assert metrics.l1_hit_chunks - hits == len(touched) - zero > 0
        assert metrics.miss_chunks == misses


async def test_a_known_place_is_forgotten_when_any_chunk_is_given_up(
    store: Store, table: ManifestTable, cache: Cache
) -> None:
    async with reading(cache, prompt(store)) as reader:
        await reader.read(table, 0, 100)
        for _ in range(2):  # found, then known
            assert bytes(reader.read_hit(table, 10, 50) or b"") == DATA[10:60]
        chunk = table.chunk(0)
        placement = cache.l1.find(chunk.id)
        assert placement is not None
        cache.l1.drop(chunk.id, placement.slot)
        assert reader.read_hit(table, 10, 50) is None


async def test_a_small_hit_is_right_whatever_was_hit_before(
    store: Store, table: ManifestTable, cache: Cache, tmp_path: Path
) -> None:
    """The place of a hot chunk is remembered: not for another table, and not beyond its loss."""
    other = Random(9).randbytes(len(DATA))
    import_bytes(store, other, "other")
    second = table_of(store, tmp_path, "other")
    async with reading(cache, prompt(store)) as reader:
        for each in (table, second):
            await reader.read(each, 0, len(DATA))
        for _ in range(3):
            for each, data in ((table, DATA), (second, other)):
                for offset, size_bytes in ((5, 10), (CHUNK - 5, 10), (CHUNK, 5), (0, CHUNK)):
                    found = bytes(reader.read_hit(each, offset, size_bytes) or b"")
                    assert found == data[offset:][:size_bytes]
        placement = cache.l1.find(table.chunk(0).id)
        assert placement is not None
        cache.l1.drop(table.chunk(0).id, placement.slot)
        assert reader.read_hit(table, 5, 10) is None
        assert bytes(reader.read_hit(second, 5, 10) or b"") == other[5:15]
        assert await reader.read(table, 5, 10) == DATA[5:15]
        assert bytes(reader.read_hit(table, 5, 10) or b"") == DATA[5:15]
    second.close()


async def test_a_hit_of_a_whole_megabyte(tmp_path: Path) -> None:
    data = Random(5).randbytes(MAX_READ_BYTES + 3 * CHUNK)
    store = new_store(tmp_path / "large")
    import_bytes(store, data)
    table = table_of(store, tmp_path)
    with opened_cache(tmp_path / "roomy", 64 * MIB, clean=False) as cache:
        async with reading(cache, prompt(store)) as reader:
            for offset in (CHUNK + 1, 0):
                await reader.read(table, offset, MAX_READ_BYTES)
                found = reader.read_hit(table, offset, MAX_READ_BYTES)
                assert bytes(found or b"") == data[offset : offset + MAX_READ_BYTES]
    table.close()


async def test_a_small_chunk_read_through_another_image_with_larger_ones(
    tmp_path: Path, cache: Cache
) -> None:
    """The short end of one image is a whole chunk of another: one slot, of either class."""
    end = Random(6).randbytes(CHUNK)
    store = new_store(tmp_path / "two")
    import_bytes(store, bytes(64 * KIB) + end, "large", 64 * KIB)
    import_bytes(store, end + PART, "small")
    tables = [table_of(store, tmp_path, name) for name in ("large", "small")]
    async with reading(cache, prompt(store)) as reader:
        assert await reader.read(tables[0], 64 * KIB, CHUNK) == end
        assert await reader.read(tables[1], 0, 9 * CHUNK) == end + PART
        assert bytes(reader.read_hit(tables[1], 0, 9 * CHUNK) or b"") == end + PART
    assert cache.l1.metrics.l3_chunks == 6
    for table in tables:
        table.close()


async def test_a_file_system_without_nowait_reads_all_the_same(
    store: Store, table: ManifestTable, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Like tmpfs, or an overlay: EOPNOTSUPP to every RWF_NOWAIT."""

    def refuse(*_: object) -> int:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "preadv", refuse)
    async with reading(cache, prompt(store)) as reader:
        for _ in range(2):
            assert await reader.read(table, 0, len(DATA)) == DATA
            assert reader.read_hit(table, 0, 10) is None
    assert cache.l1.metrics.l1_errors == 0
    assert cache.l1.metrics.disk_waits > 0
    assert cache.l1.metrics.l3_chunks == 9


@pytest.mark.parametrize("fails", ["again", "short", "raises"])
async def test_what_the_page_cache_has_not_comes_by_a_thread(
    store: Store, table: ManifestTable, cache: Cache, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    async with reading(cache, prompt(store)) as reader:
        await reader.read(table, 0, len(DATA))

        def partly(fd: int, buffers: list[memoryview], offset: int, flags: int) -> int:
            if fails == "short":
                return len(buffers[0]) - 1
            raise BlockingIOError(11, "again") if fails == "again" else OSError(5, "bad sector")

        monkeypatch.setattr(os, "preadv", partly)
        assert reader.read_hit(table, 0, 3 * CHUNK) is None
        assert await reader.read(table, 10, 3 * CHUNK) == DATA[10:][: 3 * CHUNK]
    assert cache.l1.metrics.disk_waits == 4


async def test_a_chunk_that_the_disk_cannot_read_is_fetched_again(
    store: Store,
    table: ManifestTable,
    cache: Cache,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with reading(cache, prompt(store)) as reader:
        await reader.read(table, 0, CHUNK)
        with monkeypatch.context() as patch:
            _fail_reads(patch, 1)
            assert await reader.read(table, 0, CHUNK) == DATA[:CHUNK]
        assert cache.l1.metrics.l1_errors == 1
        assert cache.l1.metrics.l3_chunks == 2
        assert any("L1 cannot read chunk" in message for message in caplog.messages)


def _fail_reads(patch: pytest.MonkeyPatch, times: int) -> None:
    """Let the next reads of slots fail as those of a bad sector."""
    left = [times]
    real_preadv, real_pread = os.preadv, os.pread

    def preadv(fd: int, buffers: list[memoryview], offset: int, flags: int) -> int:
        if left[0]:
            raise BlockingIOError(11, "again")
        return real_preadv(fd, buffers, offset, flags)

    def pread(fd: int, size_bytes: int, offset: int) -> bytes:
        if left[0] and "segments" in os.readlink(f"/proc/self/fd/{fd}"):
            left[0] -= 1
            raise OSError(5, "Input/output error")
        return real_pread(fd, size_bytes, offset)

    patch.setattr(os, "preadv", preadv)
    patch.setattr(os, "pread", pread)


async def test_what_was_just_written_and_cannot_be_read_is_fetched_once_more(
    store: Store, table: ManifestTable, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with reading(cache, prompt(store)) as reader:
        table.chunk(0)  # its page is in memory: only slots fail
        with monkeypatch.context() as patch:
            _fail_reads(patch, 1)
            assert await reader.read(table, 0, CHUNK) == DATA[:CHUNK]
        assert cache.l1.metrics.l1_errors == 1


async def test_a_segment_that_was_cut_is_no_short_read(
    store: Store, table: ManifestTable, cache: Cache
) -> None:
    async with reading(cache, prompt(store)) as reader:
        await reader.read(table, 0, len(DATA))
        os.truncate(cache.l1.class_for(CHUNK).segment.path, 100)
        assert reader.read_hit(table, 0, CHUNK) is None
        assert await reader.read(table, 0, CHUNK) == DATA[:CHUNK]


# ------------------------------------------------------------------------------------ corruption
async def test_a_flipped_bit_in_a_slot_heals_when_every_read_is_verified(
    store: Store, table: ManifestTable, cache: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    async with reading(cache, prompt(store), verify_reads=True) as reader:
        await reader.read(table, 0, len(DATA))
        for offset in (0, 100, CHUNK - 1):
            flip_in_slot(cache, table.chunk(1).id, offset)
            assert await reader.read(table, CHUNK + 5, 10) == DATA[CHUNK + 5 :][:10]
        assert cache.l1.metrics.l1_corrupt == 3
        assert cache.l1.metrics.l3_chunks == 12
        assert any("fetched again" in message for message in caplog.messages)


async def test_a_bit_that_flips_between_landing_and_reading_is_noticed(
    store: Store, table: ManifestTable, cache: Cache
) -> None:
    pool = HandPool(Fetcher(store.url, store.identity))
    ended: list[bytes] = []
    async with reading(cache, pool, verify_reads=True) as reader, trio.open_nursery() as nursery:

        async def read() -> None:
            ended.append(bytes(await reader.read(table, 0, CHUNK)))

        nursery.start_soon(read)
        await wait_until(lambda: bool(pool.jobs))
        pool.answer()
        flip_in_slot(cache, table.chunk(0).id)
        await wait_until(lambda: bool(pool.jobs))
        pool.answer()
    assert ended == [DATA[:CHUNK]]
    assert cache.l1.metrics.l1_corrupt == 1


async def test_after_an_unclean_stop_a_flipped_bit_heals_at_first_use(
    store: Store, table: ManifestTable, tmp_path: Path
) -> None:
    # Caches of their own: one loop must not see the files of two.
    folder = tmp_path / "unclean"
    with opened_cache(folder, clean=False) as cache:
        async with reading(cache, prompt(store)) as reader:
            await reader.read(table, 0, len(DATA))
            await committed(cache)
        flip_in_slot(cache, table.chunk(1).id, 77)
    with opened_cache(folder, clean=False) as cache:
        assert cache.l1.epoch.unclean_start
        async with reading(cache, prompt(store)) as reader:
            assert reader.read_hit(table, 0, CHUNK) is None
            assert await reader.read(table, 0, len(DATA)) == DATA
            assert cache.l1.metrics.l1_corrupt == 1
            assert cache.l1.metrics.l3_chunks == 1
            assert (
                bytes(reader.read_hit(table, 0, len(DATA)) or b"") == DATA
            )  # and is trusted from then on
            placement = cache.l1.find(table.chunk(0).id)
            assert placement is not None
            assert not cache.l1.is_suspect(placement)


async def test_the_scrub_finds_a_flipped_bit_and_the_next_read_heals_it(
    store: Store, table: ManifestTable, cache: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    scrub = Scrub(cache.l1, 0, cache.l1.metrics)
    async with reading(cache, prompt(store)) as reader:
        await reader.read(table, 0, len(DATA))
        await committed(cache)
        assert await scrub.scrub_once() == (9, 0)
        flip_in_slot(cache, table.chunk(1).id, 9)
        assert await scrub.scrub_once() == (9, 1)
        assert cache.l1.find(table.chunk(1).id) is None
        assert await reader.read(table, 0, len(DATA)) == DATA
        assert any("is not what its id says" in message for message in caplog.messages)
    assert cache.l1.metrics.scrub_passes == 2
    assert cache.l1.metrics.scrubbed_chunks == 18
    assert cache.l1.metrics.l1_corrupt == 1


async def test_what_is_dropped_while_it_is_read_leaves_no_trace(
    store: Store, table: ManifestTable, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slot that lost its chunk during a slow read must not count as used: it is empty."""
    async with reading(cache, prompt(store)) as reader:
        await reader.read(table, 0, CHUNK)
        placement = cache.l1.find(table.chunk(0).id)
        assert placement is not None
        real = os.pread

        def slow(fd: int, size_bytes: int, offset: int) -> bytes:
            trio.from_thread.run_sync(cache.l1.drop, table.chunk(0).id, placement.slot)
            return real(fd, size_bytes, offset)

        with monkeypatch.context() as patch:
            patch.setattr(os, "preadv", _again)
            patch.setattr(os, "pread", slow)
            assert await reader.read(table, 0, CHUNK) == DATA[:CHUNK]
        assert not cache.l1.class_for(CHUNK).policy.snapshot()[placement.slot & INDEX_MASK]


def _again(*_: object) -> int:
    raise BlockingIOError(11, "again")


# --------------------------------------------------------------------------- errors and deadlines
async def test_a_corrupt_store_is_an_error_and_never_a_byte(
    store: Store, table: ManifestTable, cache: Cache
) -> None:
    [pack] = pack_paths(store)
    flip(pack, table.chunk(1).offset + 20)
    async with reading(cache, prompt(store)) as reader:
        with pytest.raises(CorruptError):
            await reader.read(table, 0, len(DATA))
        assert await reader.read(table, 2 * CHUNK, CHUNK) == DATA[2 * CHUNK : 3 * CHUNK]
        flip(pack, table.chunk(1).offset + 20)
        assert await reader.read(table, 0, len(DATA)) == DATA
    assert cache.l1.metrics.read_errors == 1
    assert cache.l1.metrics.l3_corrupt == 2


async def test_a_pack_that_is_gone_is_an_error(
    store: Store, table: ManifestTable, cache: Cache
) -> None:
    [pack] = pack_paths(store)
    pack.unlink()
    async with reading(cache, prompt(store)) as reader:
        with pytest.raises(NotFoundError):
            await reader.read(table, 0, 1)
        assert await reader.read(table, 5 * CHUNK, 3 * CHUNK) == bytes(3 * CHUNK)


async def test_reads_of_what_is_here_go_on_while_others_wait(
    store: Store, table: ManifestTable, cache: Cache
) -> None:
    pool = HandPool(Fetcher(store.url, store.identity))
    async with reading(cache, pool, deadline_s=2) as reader:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader.read, table, 0, CHUNK)
            await wait_until(lambda: bool(pool.jobs))
            pool.answer()
        async with trio.open_nursery() as nursery:

            async def too_late() -> None:
                with pytest.raises(DeadlineError):
                    await reader.read(table, CHUNK, CHUNK)

            nursery.start_soon(too_late)
            await wait_until(lambda: bool(pool.jobs))
            assert await reader.read(table, 0, CHUNK) == DATA[:CHUNK]
            assert cache.l1.metrics.waiting_reads == 1
        assert cache.l1.metrics.read_deadlines == cache.l1.metrics.read_errors == 1
        pool.answer()  # and when the store is back the chunk lands for the next one
        assert await reader.read(table, CHUNK, CHUNK) == DATA[CHUNK : 2 * CHUNK]


@pytest.mark.parametrize(("patience_s", "deadline_s"), [(0.1, 10), (30, 0.5)])
async def test_a_disk_that_hangs_costs_its_patience_and_no_read_more_than_its_deadline(
    store: Store,
    table: ManifestTable,
    cache: Cache,
    monkeypatch: pytest.MonkeyPatch,
    patience_s: float,
    deadline_s: float,
) -> None:
    """Also where a chunk has just landed: then it comes once more, as bytes."""
    release = trio.Event()

    real = trio.to_thread.run_sync

    async def hang(*arguments: object, **options: object) -> object:
        if getattr(arguments[0], "func", None) is os.pread:
            await release.wait()
        return await real(*arguments, **options)  # type: ignore[arg-type]

    async with reading(cache, prompt(store)) as reader:
        await reader.read(table, 2 * CHUNK, CHUNK)  # there are slots now
        reader._deadline_s = deadline_s
        monkeypatch.setattr(os, "preadv", _again)
        monkeypatch.setattr("cachefs.reader.trio.to_thread.run_sync", hang)
        reader._disk_patience_s = patience_s
        with trio.fail_after(20):
            if patience_s < 1:
                for _ in range(3):
                    assert await reader.read(table, 0, CHUNK) == DATA[:CHUNK]
                assert cache.l1.is_left
            else:
                with pytest.raises(DeadlineError, match="L1 did not answer"):
                    await reader.read(table, 0, CHUNK)
        monkeypatch.undo()
        release.set()
        reader._deadline_s = 10
        assert await reader.read(table, 0, CHUNK) == DATA[:CHUNK]


async def test_flights_of_others_that_land_on_a_disk_that_fails_end_no_read(
    store: Store, table: ManifestTable, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, others = Stack.flights, iter(range(4))

    def joined(
        stack: Stack, *arguments: Any, is_kept: bool = True
    ) -> AbstractContextManager[list[Flight]]:
        return real(stack, *arguments, is_kept=is_kept or next(others, None) is not None)

    async def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, "the disk")

    monkeypatch.setattr(Stack, "flights", joined)
    monkeypatch.setattr(Reader, "_read_slot", fail)
    monkeypatch.setattr(os, "preadv", _again)
    monkeypatch.setattr(cache.l1.health, "failed", lambda: None)  # as between its failures
    async with reading(cache, prompt(store)) as reader:
        assert await reader.read(table, 0, CHUNK) == DATA[:CHUNK]
    assert next(others, None) is None
    assert cache.l1.metrics.read_errors == 0


async def test_what_waits_at_once_is_one_stall(
    store: Store, table: ManifestTable, cache: Cache
) -> None:
    pool = HandPool(Fetcher(store.url, store.identity))
    metrics = cache.l1.metrics
    async with reading(cache, pool) as reader:
        begun_s = trio.current_time()
        async with trio.open_nursery() as nursery:
            for index in range(4):
                nursery.start_soon(reader.read, table, index * CHUNK, CHUNK)
            await wait_until(lambda: len(pool.jobs) == 4)
            await trio.sleep(0.05)
            while pool.jobs:
                pool.answer()
        took_us = (trio.current_time() - begun_s) * 1e6
        assert 50_000 <= metrics.stalled_us <= took_us
        assert metrics.read_wait_us >= 4 * 50_000
        await trio.sleep(0.02)
        stalled_us, watch = metrics.stalled_us, Stopwatch()
        assert await reader.read(table, 0, CHUNK) == DATA[:CHUNK]  # here: nobody waits for long
        assert metrics.stalled_us - stalled_us < 20_000 + watch.queued_s * 1e6


async def test_an_outage_evicts_nothing(
    store: Store, table: ManifestTable, cache: Cache, autojump_clock: MockClock
) -> None:
    pool = HandPool(Fetcher(store.url, store.identity))
    async with trio.open_nursery() as nursery:
        cache.l1.class_for(CHUNK).segment.allocate(0)
        cache.l1.class_for(CHUNK).add_extent(0)
        stack = Stack(cache.l1, pool, nursery, cache.l1.metrics)
        reader = Reader(cache.l1, stack, cache.l1.metrics, 20, verify_reads=False)
        nursery.start_soon(reader.read, table, 0, CHUNK)
        await wait_all_tasks_blocked()
        pool.answer()
        await wait_all_tasks_blocked()
        before = cache.l1.resident_chunks
        nursery.start_soon(_miss_the_deadline, reader, table)
        for _ in range(5):
            while not pool.jobs:  # noqa: ASYNC110 - the clock jumps
                await trio.sleep(0.01)
            pool.answer_all(Outcome.UNAVAILABLE, "away")
        await trio.sleep(30)
        assert cache.l1.resident_chunks == before
        assert bytes(reader.read_hit(table, 0, CHUNK) or b"") == DATA[:CHUNK]
        pool.answer_all(Outcome.UNAVAILABLE, "away")


async def _miss_the_deadline(reader: Reader, table: ManifestTable) -> None:
    with pytest.raises(DeadlineError):
        await reader.read(table, 2 * CHUNK, CHUNK)


async def test_a_damaged_table_is_said_and_read_nowhere(
    store: Store, table: ManifestTable, cache: Cache, tmp_path: Path
) -> None:
    async with reading(cache, prompt(store)) as reader:
        flip(table.path, table.path.stat().st_size - 1)
        assert reader.read_hit(table, 0, CHUNK) is None
        with pytest.raises(TableDamagedError):
            await reader.read(table, 0, CHUNK)
