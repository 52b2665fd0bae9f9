from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from cachefs.errors import CacheError, CorruptError, NotFoundError, StoreUnavailableError
from cachefs.index.manifest_table import ManifestTable
from cachefs.store.store import Store
from cachefs.tiers import tables as module
from cachefs.tiers.fetcher import Fetcher
from cachefs.tiers.jobs import Failed, TableJob
from cachefs.tiers.tables import Tables
from tests.caches import HandPool
from tests.stores import CHUNK, flip, import_bytes, new_store

DATA = Random(1).randbytes(3 * CHUNK)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = new_store(tmp_path)
    import_bytes(store, DATA)
    return store


@pytest.fixture
def manifest_id(store: Store) -> str:
    return store.image("image")[0].current.manifest


class Bench:
    """Tables whose fetcher is the test."""

    def __init__(self, store: Store, folder: Path, nursery: trio.Nursery) -> None:
        self.folders = (folder / "tables", folder / "spare")
        for path in self.folders:
            path.mkdir(exist_ok=True)
        self.pool = HandPool(Fetcher(store.url, store.identity))
        self.tables = Tables(self.folders, self.pool)
        self.nursery = nursery
        self.ended: list[ManifestTable | Exception] = []

    async def get(self, manifest_id: str, wait_s: float = 30) -> None:
        try:
            deadline_s = trio.current_time() + wait_s
            self.ended.append(await self.tables.get(manifest_id, deadline_s))
        except Exception as error:  # noqa: BLE001
            self.ended.append(error)

    async def start(self, manifest_id: str, wait_s: float = 30) -> None:
        self.nursery.start_soon(self.get, manifest_id, wait_s)
        await wait_all_tasks_blocked()

    def table(self) -> ManifestTable:
        found = self.ended[-1]
        assert isinstance(found, ManifestTable), found
        return found

    async def asked(self) -> None:
        while not self.pool.jobs:  # noqa: ASYNC110 - the clock jumps
            await trio.sleep(0.01)


@asynccontextmanager
async def at_work(store: Store, folder: Path) -> AsyncIterator[Bench]:
    async with trio.open_nursery() as nursery:
        bench = Bench(store, folder, nursery)
        yield bench
        await wait_all_tasks_blocked()
        assert not bench.tables._locks
        bench.tables.close()


async def test_a_table_is_fetched_once_and_then_local(
    store: Store, manifest_id: str, tmp_path: Path
) -> None:
    async with at_work(store, tmp_path) as bench:
        assert bench.tables.opened(manifest_id) is None
        for _ in range(3):
            await bench.start(manifest_id)
        assert len(bench.pool.jobs) == 1
        bench.pool.answer()
        await wait_all_tasks_blocked()
        assert len(bench.ended) == 3
        assert bench.table().size_bytes == len(DATA)
        assert bench.tables.opened(manifest_id) is bench.table()
        await bench.start(manifest_id)
        assert not bench.pool.jobs
    async with at_work(store, tmp_path) as bench:  # and in the next daemon
        await bench.start(manifest_id)
        assert not bench.pool.jobs
        assert bench.table().size_bytes == len(DATA)


async def test_a_damaged_local_table_is_fetched_again(
    store: Store, manifest_id: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with at_work(store, tmp_path) as bench:
        await bench.start(manifest_id)
        bench.pool.answer()
    flip(tmp_path / "tables" / manifest_id, 30)
    async with at_work(store, tmp_path) as bench:
        await bench.start(manifest_id)
        assert any("damaged; it is fetched again" in message for message in caplog.messages)
        bench.pool.answer()
        await wait_all_tasks_blocked()
        assert bench.table().chunk(2).plain_bytes == CHUNK


async def test_a_table_that_is_given_up_stays_open_for_its_readers(
    store: Store, manifest_id: str, tmp_path: Path
) -> None:
    async with at_work(store, tmp_path) as bench:
        await bench.start(manifest_id)
        bench.pool.answer()
        await wait_all_tasks_blocked()
        old = bench.table()
        bench.tables.discard(manifest_id)
        assert not (tmp_path / "tables" / manifest_id).exists()
        await bench.start(manifest_id)
        bench.pool.answer()
        await wait_all_tasks_blocked()
        assert bench.table() is not old
        assert old.chunk(1) == bench.table().chunk(1)


async def test_only_so_many_tables_are_open(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_OPEN", 2)
    for number in range(3):
        import_bytes(store, DATA[number:], f"image-{number}")
    ids = [store.image(f"image-{number}")[0].current.manifest for number in range(3)]
    async with at_work(store, tmp_path) as bench:
        for manifest_id in ids:
            await bench.start(manifest_id)
            bench.pool.answer()
            await wait_all_tasks_blocked()
        assert [bench.tables.opened(each) is not None for each in ids] == [False, True, True]
        first = bench.ended[0]
        assert isinstance(first, ManifestTable)
        assert first.chunk(0).plain_bytes == CHUNK


async def test_an_outage_is_tried_again_until_the_deadline(
    store: Store, manifest_id: str, tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with at_work(store, tmp_path) as bench:
        bench.nursery.start_soon(bench.get, manifest_id, 30)
        for _ in range(4):
            await bench.asked()
            number = bench.pool.jobs[0][0].number
            bench.pool.answer(Failed(number, StoreUnavailableError("away")))
        await bench.asked()
        bench.pool.answer()
        await wait_all_tasks_blocked()
        assert bench.table().size_bytes == len(DATA)


async def test_the_deadline_holds_for_who_waits_for_anothers_fetch_too(
    store: Store, manifest_id: str, tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with at_work(store, tmp_path) as bench:
        began_s = trio.current_time()
        bench.nursery.start_soon(bench.get, manifest_id, 30)
        await bench.asked()
        await bench.get(manifest_id, 5)
        assert isinstance(bench.ended[0], trio.TooSlowError)
        assert trio.current_time() - began_s < 6
        bench.pool.answer()
        await trio.sleep(1)
        assert bench.table().size_bytes == len(DATA)


async def test_what_no_waiting_helps_fails_at_once(
    store: Store, manifest_id: str, tmp_path: Path, autojump_clock: MockClock
) -> None:
    path = Path(store.url.removeprefix("file://")) / "manifests" / manifest_id
    async with at_work(store, tmp_path) as bench:
        flip(path, path.stat().st_size - 3)
        await bench.start(manifest_id)
        await bench.asked()
        bench.pool.answer()
        await wait_all_tasks_blocked()
        path.unlink()
        await bench.start(manifest_id)
        await bench.asked()
        bench.pool.answer()
        await wait_all_tasks_blocked()
        assert [type(end) for end in bench.ended[:1]] == [CorruptError]
        assert isinstance(bench.ended[1], NotFoundError)


async def test_one_who_fails_does_not_fail_the_next(
    store: Store, manifest_id: str, tmp_path: Path
) -> None:
    async with at_work(store, tmp_path) as bench:
        await bench.start(manifest_id)
        await bench.start(manifest_id)
        bench.pool.answer(Failed(bench.pool.jobs[0][0].number, CorruptError("bad")))
        await wait_all_tasks_blocked()
        bench.pool.answer()
        await wait_all_tasks_blocked()
        assert isinstance(bench.ended[0], CorruptError)
        assert bench.table().size_bytes == len(DATA)


async def test_a_full_cache_disk_keeps_no_image_from_its_guest(
    store: Store, manifest_id: str, tmp_path: Path
) -> None:
    async with at_work(store, tmp_path) as bench:
        bench.folders[0].rmdir()
        bench.folders[0].write_text("in the way")
        await bench.start(manifest_id)
        bench.pool.answer()
        await wait_all_tasks_blocked()
        assert bench.table().path.parent == bench.folders[1]


async def test_a_table_that_went_away_lies_elsewhere_or_is_an_error(
    store: Store, manifest_id: str, tmp_path: Path
) -> None:
    async with at_work(store, tmp_path) as bench:
        await bench.start(manifest_id)
        for folders in (bench.folders, bench.folders[1:]):
            job, _, done = bench.pool.jobs.pop(0)
            assert isinstance(job, TableJob)
            assert [Path(path).parent for path in job.paths] == list(folders)
            assert bench.pool.fetcher is not None
            answer = bench.pool.fetcher.answer(job)
            bench.tables.discard(manifest_id)
            done(answer)
            await wait_all_tasks_blocked()
        assert isinstance(bench.ended[0], CacheError)


async def test_tables_that_no_image_needs_are_removed(
    store: Store, manifest_id: str, tmp_path: Path
) -> None:
    async with at_work(store, tmp_path) as bench:
        for folder in bench.folders:
            for name in (manifest_id, "0" * 64, f".{'0' * 64}.123"):
                (folder / name).write_text("")
        bench.tables.forget_all_but({manifest_id})
        for folder in bench.folders:
            assert [path.name for path in folder.iterdir()] == [manifest_id]
            (folder / manifest_id).unlink()
