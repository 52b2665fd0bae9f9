"""The operations as pyfuse3 calls them, without a mount."""

import errno
import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any, cast

import pyfuse3
import pytest
import trio

from cachefs.daemon.cache import Cache
from cachefs.errors import CachefsError, CorruptError, NotFoundError, StoreUnavailableError
from cachefs.fuse.opened import OpenImages
from cachefs.fuse.operations import Operations
from cachefs.index.manifest_table import ManifestTable
from cachefs.model.image import Image
from cachefs.reader import Reader
from cachefs.store.store import Store
from cachefs.tiers.fetcher import Fetcher
from cachefs.tiers.stack import Stack
from cachefs.tiers.tables import Tables
from cachefs.units import MIB
from cachefs.vfs import ROOT_INODE, FileNode, Tree, Vfs
from tests.caches import PromptPool, opened_cache
from tests.stores import CHUNK, flip, import_bytes, new_store

DATA = Random(1).randbytes(2 * CHUNK) + bytes(CHUNK) + b"end"
CONTEXT = cast(pyfuse3.RequestContext, None)
NAMES_VALID_S = 2.5


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = new_store(tmp_path)
    import_bytes(store, DATA, "folder/image")
    import_bytes(store, b"", "empty")
    return store


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    with opened_cache(tmp_path / "cache", 4 * MIB) as cache:
        yield cache


class Mounted:
    """Operations with all that is below them."""

    def __init__(self, store: Store, cache: Cache, nursery: trio.Nursery) -> None:
        self.store = store
        pool = PromptPool(Fetcher(store.url, store.identity))
        self.vfs = Vfs()
        self.show()
        self.tables = Tables((cache.folder.manifests_path,), pool)
        stack = Stack(cache.l1, pool, nursery, cache.l1.metrics)
        reader = Reader(cache.l1, stack, cache.l1.metrics, 30, verify_reads=False)
        xattrs: dict[str, Callable[[FileNode], Awaitable[bytes]]] = {
            "user.cachefs.version": self._version
        }
        images = OpenImages(self.vfs, reader, self._table, self._renewed)
        self.operations = Operations(self.vfs, images, xattrs, NAMES_VALID_S)

    def show(self) -> None:
        images: list[Image] = [self.store.image(e.name)[0] for e in self.store.images()]
        self.vfs.show(Tree(images))

    async def _version(self, node: FileNode) -> bytes:
        return str(node.version.number).encode()

    async def _table(self, manifest_id: str) -> ManifestTable:
        return await self.tables.get(manifest_id, trio.current_time() + 30)

    async def _renewed(self, manifest_id: str) -> ManifestTable:
        self.tables.discard(manifest_id)
        return await self._table(manifest_id)

    async def read(self, fh: int, offset: int, size: int) -> bytes:
        return bytes(await self.operations.read(fh, offset, size))

    async def look_up(self, path: str) -> int:
        inode = ROOT_INODE
        for name in path.split("/"):
            entry = await self.operations.lookup(inode, name.encode(), CONTEXT)
            inode = entry.st_ino
        return inode

    async def open(self, path: str, flags: int = os.O_RDONLY) -> int:
        info = await self.operations.open(await self.look_up(path), flags, CONTEXT)
        assert info.keep_cache
        return int(info.fh)


@asynccontextmanager
async def mounted(store: Store, cache: Cache) -> AsyncIterator[Mounted]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cache.keeper.run)
        yield Mounted(store, cache, nursery)
        nursery.cancel_scope.cancel()


async def fails_with(number: int, call: Awaitable[object]) -> None:
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await call
    assert caught.value.errno == number, errno.errorcode[caught.value.errno]


async def test_a_file_has_the_attributes_of_its_version(store: Store, cache: Cache) -> None:
    async with mounted(store, cache) as it:
        inode = await it.look_up("folder/image")
        entry = await it.operations.getattr(inode, CONTEXT)
        assert stat.S_ISREG(entry.st_mode)
        assert stat.S_IMODE(entry.st_mode) == 0o444
        assert entry.st_size == len(DATA)
        assert entry.st_blocks * 512 == -(-(2 * CHUNK + 3) // 512) * 512  # zeros take nothing
        assert entry.st_mtime_ns > 0
        assert entry.entry_timeout == NAMES_VALID_S
        assert entry.attr_timeout > 3600
        folder = await it.operations.lookup(ROOT_INODE, b"folder", CONTEXT)
        assert stat.S_ISDIR(folder.st_mode)
        assert folder.st_mtime_ns >= entry.st_mtime_ns


async def test_what_is_not_there(store: Store, cache: Cache) -> None:
    async with mounted(store, cache) as it:
        operations = it.operations
        await fails_with(errno.ENOENT, operations.lookup(ROOT_INODE, b"no", CONTEXT))
        await fails_with(errno.ENOENT, operations.lookup(ROOT_INODE, b"\xff", CONTEXT))
        await fails_with(errno.ENOENT, operations.getattr(999, CONTEXT))
        await fails_with(errno.ENOENT, operations.open(999, os.O_RDONLY, CONTEXT))
        await fails_with(errno.ENOENT, operations.opendir(999, CONTEXT))


async def test_folders_and_files_are_told_apart(store: Store, cache: Cache) -> None:
    async with mounted(store, cache) as it:
        inode = await it.look_up("folder/image")
        await fails_with(errno.ENOTDIR, it.operations.opendir(inode, CONTEXT))
        await fails_with(errno.EISDIR, it.operations.open(ROOT_INODE, os.O_RDONLY, CONTEXT))
        assert await it.operations.opendir(ROOT_INODE, CONTEXT) == ROOT_INODE


async def test_reads_cold_and_warm(store: Store, cache: Cache) -> None:
    async with mounted(store, cache) as it:
        fh = await it.open("folder/image")
        for _ in range(2):
            for offset, size_bytes in ((0, 2**20), (CHUNK - 3, 7), (len(DATA), 10)):
                found = await it.read(fh, offset, size_bytes)
                assert bytes(found) == DATA[offset:][:size_bytes]
        empty = await it.open("empty")
        assert await it.read(empty, 0, 10) == b""
        await it.operations.release(fh)
        # Another handle of the same file, and one of an earlier daemon, go on.
        assert await it.read(fh, 1, 10) == DATA[1:11]


async def test_an_open_file_stays_on_its_version(store: Store, cache: Cache) -> None:
    async with mounted(store, cache) as it:
        fh = await it.open("folder/image")
        import_bytes(store, b"new", "folder/image")
        it.show()
        assert await it.read(fh, 0, 2**20) == DATA
        newer = await it.open("folder/image")
        assert newer != fh
        assert await it.read(newer, 0, 2**20) == b"new"
        assert await it.read(fh, 0, 2**20) == DATA


async def test_an_open_for_writing_succeeds_and_the_write_does_not(
    store: Store, cache: Cache
) -> None:
    async with mounted(store, cache) as it:
        fh = await it.open("folder/image", os.O_RDWR)
        assert await it.read(fh, 0, 5) == DATA[:5]
        await fails_with(errno.EROFS, it.operations.write(fh, 0, b"x"))
        inode = await it.look_up("folder/image")
        truncating = it.operations.open(inode, os.O_RDWR | os.O_TRUNC, CONTEXT)
        await fails_with(errno.EROFS, truncating)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("setattr", (1, None, None, None, None)),
        ("create", (1, b"new", 0o644, 0, None)),
        ("mknod", (1, b"new", 0o644, 0, None)),
        ("mkdir", (1, b"new", 0o755, None)),
        ("symlink", (1, b"new", b"target", None)),
        ("link", (2, 1, b"new", None)),
        ("unlink", (1, b"empty", None)),
        ("rmdir", (1, b"folder", None)),
        ("rename", (1, b"empty", 1, b"new", 0, None)),
        ("setxattr", (1, b"user.a", b"b", None)),
        ("removexattr", (1, b"user.a", None)),
        ("write", (1, 0, b"x")),
    ],
)
async def test_every_change_is_refused(
    store: Store, cache: Cache, name: str, arguments: tuple[Any, ...]
) -> None:
    async with mounted(store, cache) as it:
        await fails_with(errno.EROFS, getattr(it.operations, name)(*arguments))


async def test_access(store: Store, cache: Cache) -> None:
    async with mounted(store, cache) as it:
        inode = await it.look_up("folder/image")
        assert await it.operations.access(inode, os.R_OK, CONTEXT)
        assert not await it.operations.access(inode, os.X_OK, CONTEXT)
        assert await it.operations.access(ROOT_INODE, os.R_OK | os.X_OK, CONTEXT)
        await fails_with(errno.EROFS, it.operations.access(inode, os.W_OK, CONTEXT))
        await fails_with(errno.ENOENT, it.operations.access(99, os.R_OK, CONTEXT))


async def test_a_folder_is_listed_in_parts(
    store: Store, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(7):
        import_bytes(store, b"", f"folder/{number}")
    async with mounted(store, cache) as it:
        fh = await it.operations.opendir(await it.look_up("folder"), CONTEXT)
        told: list[tuple[bytes, int]] = []
        left = [0]

        def reply(token: object, name: bytes, entry: pyfuse3.EntryAttributes, next_id: int) -> bool:
            if not left[0]:
                return False
            left[0] -= 1
            assert entry.st_ino == next_id
            told.append((name, next_id))
            return True

        monkeypatch.setattr(pyfuse3, "readdir_reply", reply)
        for _ in range(4):
            left[0] = 3
            at = told[-1][1] if told else 0
            await it.operations.readdir(fh, at, cast(pyfuse3.ReaddirToken, None))
        assert sorted(name for name, _ in told) == [b"%d" % n for n in range(7)] + [b"image"]


async def test_the_file_system_is_full_and_of_the_size_of_its_images(
    store: Store, cache: Cache
) -> None:
    async with mounted(store, cache) as it:
        data = await it.operations.statfs(CONTEXT)
        assert data.f_blocks * data.f_frsize >= len(DATA)
        assert data.f_bfree == data.f_bavail == data.f_ffree == 0
        assert data.f_files == 4


async def test_extended_attributes(store: Store, cache: Cache) -> None:
    async with mounted(store, cache) as it:
        inode = await it.look_up("folder/image")
        names = await it.operations.listxattr(inode, CONTEXT)
        assert names == [b"user.cachefs.version"]
        assert await it.operations.getxattr(inode, names[0], CONTEXT) == b"1"
        missing = it.operations.getxattr(inode, b"security.selinux", CONTEXT)
        await fails_with(pyfuse3.ENOATTR, missing)
        assert await it.operations.listxattr(ROOT_INODE, CONTEXT) == []
        await fails_with(pyfuse3.ENOATTR, it.operations.getxattr(ROOT_INODE, names[0], CONTEXT))


async def test_a_damaged_table_heals_under_its_readers(store: Store, cache: Cache) -> None:
    async with mounted(store, cache) as it:
        fh = await it.open("folder/image")
        [path] = cache.folder.manifests_path.iterdir()
        flip(path, path.stat().st_size - 1)
        assert await it.read(fh, 0, 2**20) == DATA
        assert await it.read(fh, 0, 2**20) == DATA


async def test_a_table_of_another_size_is_an_error(
    store: Store, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mounted(store, cache) as it:
        inode = await it.look_up("folder/image")
        node = it.vfs.node(inode)
        assert isinstance(node, FileNode)
        object.__setattr__(node.version, "size_bytes", len(DATA) + 1)
        await fails_with(errno.EIO, it.operations.open(inode, os.O_RDONLY, CONTEXT))


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (StoreUnavailableError("away"), errno.EIO),
        (CorruptError("bits"), errno.EIO),
        (NotFoundError("gone"), errno.ENOENT),
        (trio.TooSlowError(), errno.EIO),
        (ZeroDivisionError("a fault of ours"), errno.EIO),
        (ExceptionGroup("several", [ValueError("one")]), errno.EIO),
        (CachefsError("what else"), errno.EIO),
    ],
)
async def test_no_error_of_a_handler_ends_the_mount(
    store: Store,
    cache: Cache,
    error: Exception,
    number: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with mounted(store, cache) as it:
        fh = await it.open("folder/image")

        def fail(*_: object) -> None:
            raise error

        monkeypatch.setattr(it.operations._images._reader, "_read_long", fail)
        monkeypatch.setattr(it.vfs, "lookup", fail)
        await fails_with(number, it.operations.read(fh, 0, 10))
        await fails_with(number, it.operations.lookup(ROOT_INODE, b"empty", CONTEXT))


async def test_a_pack_that_is_gone_is_no_missing_file(store: Store, cache: Cache) -> None:
    async with mounted(store, cache) as it:
        fh = await it.open("folder/image")
        for path in (Path(store.url.removeprefix("file://")) / "packs").rglob("*"):
            if path.is_file():
                path.unlink()
        await fails_with(errno.EIO, it.operations.read(fh, 0, 10))
