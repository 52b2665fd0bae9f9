import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from cachefs.daemon.listing import ListingTask
from cachefs.errors import CacheError, StoreUnavailableError
from cachefs.index.database import Database, open_database
from cachefs.index.names import Names
from cachefs.metrics import Metrics
from cachefs.model.image import Image
from cachefs.store.store import Store
from cachefs.tiers.fetcher import Fetcher
from cachefs.tiers.jobs import Failed
from cachefs.vfs import Vfs
from tests.caches import HandPool, PromptPool, wait_until
from tests.stores import import_bytes, new_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = new_store(tmp_path)
    import_bytes(store, b"one", "a")
    import_bytes(store, b"two", "b/c")
    return store


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    (tmp_path / "segments").mkdir()
    database, _ = open_database(tmp_path / "index.lmdb", tmp_path / "segments")
    yield database
    database.close()


class Bench:
    """A listing with all that it needs."""

    def __init__(self, store: Store, database: Database, pool: HandPool | None = None) -> None:
        self.pool = pool or PromptPool(Fetcher(store.url, store.identity))
        self.vfs = Vfs()
        self.metrics = Metrics()
        self.names = Names(database)
        self.listing = ListingTask(self.vfs, self.names, self.pool, self.metrics)

    def error(self) -> str | None:
        return self.listing.last_error

    def shown(self) -> dict[str, int]:
        return {name: version.number for name, version in self.vfs.tree.files().values()}


@pytest.fixture
def bench(store: Store, database: Database) -> Bench:
    return Bench(store, database)


async def test_what_the_store_has_is_shown(bench: Bench, store: Store) -> None:
    await bench.listing.refresh()
    assert bench.shown() == {"a": 1, "b/c": 1}
    assert bench.listing.manifests() == {
        store.image(name)[0].current.manifest for name in ("a", "b/c")
    }
    assert (bench.metrics.refreshes, bench.metrics.refresh_errors) == (1, 0)


async def test_new_versions_names_and_removals_appear_by_themselves(
    bench: Bench, store: Store
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.listing.run, 0.02)
        await wait_until(lambda: bench.shown() == {"a": 1, "b/c": 1})
        import_bytes(store, b"another", "a")
        await wait_until(lambda: bench.shown() == {"a": 2, "b/c": 1})
        import_bytes(store, b"new", "b/d")
        await wait_until(lambda: bench.shown() == {"a": 2, "b/c": 1, "b/d": 1})
        store.remove_image("a", store.image("a")[1])
        await wait_until(lambda: bench.shown() == {"b/c": 1, "b/d": 1})
        nursery.cancel_scope.cancel()


async def test_what_did_not_change_is_neither_read_nor_written_again(
    bench: Bench, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.listing.refresh()
    tree = bench.vfs.tree
    monkeypatch.setattr(Store, "image", _unexpected)
    monkeypatch.setattr(Names, "replace_images", _unexpected)
    await bench.listing.refresh()
    assert bench.vfs.tree is tree


def _unexpected(*_: object) -> None:
    raise AssertionError("this was not to be called")


async def test_an_outage_leaves_the_last_list_and_is_said_once(
    bench: Bench, store: Store, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    await bench.listing.refresh()
    root = Path(store.url.removeprefix("file://"))
    os.rename(root, tmp_path / "away")
    for _ in range(3):
        await bench.listing.refresh()
    assert bench.shown() == {"a": 1, "b/c": 1}
    assert bench.error()
    assert bench.metrics.refresh_errors == 3
    os.rename(tmp_path / "away", root)
    await bench.listing.refresh()
    assert bench.error() is None
    assert [message.partition(":")[0] for message in caplog.messages] == [
        "cannot list the images, showing the last list",
        "the list of images can be read again",
    ]


async def test_a_daemon_that_starts_without_a_store_shows_what_it_knew(
    bench: Bench, store: Store, database: Database
) -> None:
    await bench.listing.refresh()
    before = bench.vfs.tree.files()
    shutil.rmtree(Path(store.url.removeprefix("file://")))
    later = Bench(store, database)
    await later.listing.restore(fresh=False)
    assert later.vfs.tree.files() == before
    await later.listing.refresh()
    assert later.vfs.tree.files() == before


async def test_inodes_of_old_versions_outlive_the_daemon_but_not_the_mount(
    bench: Bench, store: Store, database: Database
) -> None:
    await bench.listing.refresh()
    [old] = [inode for inode, (name, _) in bench.vfs.tree.files().items() if name == "a"]
    import_bytes(store, b"another", "a")
    await bench.listing.refresh()
    restarted = Bench(store, database)
    await restarted.listing.restore(fresh=False)
    assert restarted.vfs.node(old).inode == old
    remounted = Bench(store, database)
    await remounted.listing.restore(fresh=True)
    assert remounted.shown() == {"a": 2, "b/c": 1}
    assert old not in remounted.names.versions()


async def test_what_is_shown_was_written_down_before(
    bench: Bench, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever the daemon is killed, the next one knows every inode that the kernel may know."""
    real: Callable[..., None] = Vfs.show

    def show(self: Vfs, tree: object) -> None:
        known = bench.names.versions()
        assert set(tree.files()) <= set(known)  # type: ignore[attr-defined]
        assert set(bench.names.images()) == {"a", "b/c"}
        real(self, tree)

    monkeypatch.setattr(Vfs, "show", show)
    await bench.listing.refresh()
    assert bench.shown() == {"a": 1, "b/c": 1}


async def test_a_record_that_cannot_be_understood_keeps_what_was_known(
    bench: Bench, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    await bench.listing.refresh()
    images = Path(store.url.removeprefix("file://")) / "images"
    (images / "a.json").write_text("{")
    (images / "new.json").write_text("{")
    for _ in range(3):
        await bench.listing.refresh()
    assert bench.shown() == {"a": 1, "b/c": 1}
    assert len(caplog.messages) == 2  # one for each, not one for each time
    assert all(".json" in message for message in caplog.messages)


async def test_a_hidden_image_is_said(
    bench: Bench, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    store.publish(Image("a/b", store.image("a")[0].versions), None)  # by an older cachefs
    await bench.listing.refresh()
    assert bench.shown() == {"a": 1, "b/c": 1}
    assert any("'a/b' is hidden" in message for message in caplog.messages)


async def test_a_full_disk_shows_nothing_new_and_ends_nothing(
    bench: Bench, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.listing.refresh()
    import_bytes(store, b"another", "a")

    def fail(*_: object) -> None:
        raise CacheError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(bench.names, "add_versions", fail)
        await bench.listing.refresh()
    assert bench.shown()["a"] == 1
    assert "No space left" in (bench.listing.last_error or "")
    await bench.listing.refresh()
    assert bench.shown()["a"] == 2
    assert bench.listing.last_error is None


async def test_an_older_list_does_not_come_after_a_newer_one(
    store: Store, database: Database
) -> None:
    """A refresh by hand beside the regular one: the last word is that of the newest list."""
    pool = HandPool(Fetcher(store.url, store.identity))
    bench = Bench(store, database, pool)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.listing.refresh)
        await wait_all_tasks_blocked()
        assert pool.fetcher is not None
        [(job, _, done)] = pool.jobs
        pool.jobs.clear()
        old = pool.fetcher.answer(job)
        import_bytes(store, b"another", "a")
        nursery.start_soon(bench.listing.refresh)
        await wait_all_tasks_blocked()
        if pool.jobs:  # were both to ask at once, the newer answer might come first
            pool.answer()
            await wait_until(lambda: bench.shown() == {"a": 2, "b/c": 1})
        done(old)
        await wait_until(lambda: bool(pool.jobs) or not nursery.child_tasks)
        if pool.jobs:
            pool.answer()
    assert bench.shown() == {"a": 2, "b/c": 1}


async def test_a_failed_answer_counts(store: Store, database: Database) -> None:
    pool = HandPool()
    bench = Bench(store, database, pool)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.listing.refresh)
        await wait_all_tasks_blocked()
        pool.answer(Failed(pool.jobs[0][0].number, StoreUnavailableError("away")))
    assert bench.listing.last_error == "away"
