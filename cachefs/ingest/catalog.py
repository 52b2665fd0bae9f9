"""The catalog: which chunks the store already holds, kept on the local disk.

LMDB, two tables: `packs` (pack id -> number of its rows) and `chunks` (chunk id -> rows: pack id,
offset and length of the frame, CRC-32 of it all). A chunk that lies in two packs has two rows.
Removing a pack from `packs` makes its rows void; when most are, the catalog starts afresh.

The catalog only saves work: it can be deleted at any time, a row that does not match its CRC is as
good as none, and a damaged file is replaced. Several processes may use it at once. Within a process
any thread may call `find` and `add`.
"""

from __future__ import annotations

import fcntl
import logging
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import lmdb

from cachefs.errors import CacheError
from cachefs.model.chunk import ID_BYTES
from cachefs.units import GIB

CATALOG_NAME = "catalog.lmdb"
_FORMAT = b"cachefs catalog 1 "
_MAP_BYTES = 256 * GIB
"""Address space, not memory or disk: room for two billion chunks."""
_VOID_FACTOR = 2
"""With more rows than so many times those in use, the catalog is emptied, to be read in again."""

_ROW = struct.Struct(f"<{ID_BYTES}sIII")
_UNCHECKED_BYTES = ID_BYTES + 8
_COUNT = struct.Struct("<I")
_DAMAGE = (
    lmdb.BadValsizeError,
    lmdb.CorruptedError,
    lmdb.IncompatibleError,
    lmdb.InvalidError,
    lmdb.PageNotFoundError,
    lmdb.PanicError,
    lmdb.VersionMismatchError,
)
"""What opening a damaged file leads to; a full disk or an open twice is no damage."""
_log = logging.getLogger(__name__)


class Place(NamedTuple):
    """Where the store has the frame of a chunk."""

    pack: bytes
    offset: int
    frame_bytes: int


class PackContent(NamedTuple):
    """A pack in the store, and for each of its frames: chunk id, offset, length."""

    pack: bytes
    frames: Sequence[tuple[bytes, int, int]]


class Catalog:
    """An opened catalog of one store. Use `open_catalog`."""

    def __init__(self, path: Path, identity: str) -> None:
        self._path = path
        self._reported = False
        self._live: set[bytes] = set()
        self._env = lmdb.open(
            str(path), subdir=False, max_dbs=3, map_size=_MAP_BYTES, metasync=False, max_readers=512
        )
        try:
            _check_length(self._env, path)
            self._env.reader_check()  # frees what killed imports held
            self._packs = self._env.open_db(b"packs")
            self._chunks = self._env.open_db(b"chunks", dupsort=True, dupfixed=True)
            self._check_stamp(_FORMAT + identity.encode())
        except BaseException:
            self._env.close()
            raise

    def close(self) -> None:
        """Close the files; a thread that an interrupted import leaves behind finds nothing more."""
        self._reported = True
        self._env.close()

    def find(self, chunk_ids: Iterable[bytes]) -> dict[bytes, Place]:
        """Return where those of the chunks are that the store has; none if the catalog fails."""
        found: dict[bytes, Place] = {}
        try:
            with self._env.begin() as txn, txn.cursor(self._chunks) as cursor:
                for chunk_id in chunk_ids:
                    if cursor.set_key(chunk_id):
                        place = self._live_place(txn, chunk_id, cursor.iternext_dup())
                        if place:
                            found[chunk_id] = place
        except lmdb.Error as error:
            self._report(error)
        return found

    def add(self, packs: Iterable[PackContent]) -> bool:
        """Take in packs that are in the store; returns whether they are found from now on."""
        try:
            with self._env.begin(write=True) as txn, txn.cursor(self._chunks) as cursor:
                for pack, frames in packs:
                    if txn.put(pack, _COUNT.pack(len(frames)), overwrite=False, db=self._packs):
                        rows = [(frame[0], _row(pack, *frame)) for frame in frames]
                        cursor.putmulti(rows, dupdata=False)
        except lmdb.Error as error:
            self._report(error)
            return False
        return True

    def packs(self) -> set[bytes]:
        """Return the ids of all packs that the catalog knows."""
        with self._env.begin() as txn, txn.cursor(self._packs) as cursor:
            return set(cursor.iternext(keys=True, values=False))

    def forget(self, packs: set[bytes]) -> None:
        """Make sure that nothing is found any more in packs that are gone."""
        self._live -= packs
        with self._env.begin(write=True) as txn:
            for pack in packs:
                txn.delete(pack, db=self._packs)
            live_rows = sum(_COUNT.unpack(count)[0] for _, count in txn.cursor(self._packs))
            rows = txn.stat(self._chunks)["entries"]
            if rows > live_rows * _VOID_FACTOR:
                self._live.clear()
                txn.drop(self._chunks, delete=False)
                txn.drop(self._packs, delete=False)

    def _report(self, error: lmdb.Error) -> None:
        if not self._reported:
            _log.warning("the catalog %s fails, and less is deduplicated: %s", self._path, error)
        self._reported = True

    def _live_place(
        self, txn: lmdb.Transaction, chunk_id: bytes, rows: Iterable[bytes]
    ) -> Place | None:
        for row in rows:
            if len(row) != _ROW.size:
                continue
            pack, offset, frame_bytes, checksum = _ROW.unpack(row)
            if zlib.crc32(chunk_id + row[:_UNCHECKED_BYTES]) == checksum and self._is_live(
                txn, pack
            ):
                return Place(pack, offset, frame_bytes)
        return None

    def _is_live(self, txn: lmdb.Transaction, pack: bytes) -> bool:
        if pack in self._live:
            return True
        if txn.get(pack, db=self._packs) is None:
            return False
        self._live.add(pack)
        return True

    def _check_stamp(self, stamp: bytes) -> None:
        meta = self._env.open_db(b"meta")
        with self._env.begin(write=True) as txn:
            if txn.get(b"stamp", stamp, db=meta) != stamp:
                raise lmdb.InvalidError("a catalog of another format or store")
            txn.put(b"stamp", stamp, db=meta)


@contextmanager
def open_catalog(folder: Path, identity: str) -> Iterator[Catalog]:
    """Open the catalog of the store `identity` in `folder`; make it, or replace a damaged one.

    Raises:
        CacheError: the folder cannot be used.
    """
    path = folder / CATALOG_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / f"{CATALOG_NAME}.open"):
            catalog = _open_or_replace(path, identity)
    except (OSError, lmdb.Error) as error:
        raise CacheError(
            f"cannot use the catalog {path}: {error}; choose a folder with --catalog-dir"
        ) from error
    try:
        yield catalog
    finally:
        catalog.close()


def _open_or_replace(path: Path, identity: str) -> Catalog:
    try:
        return Catalog(path, identity)
    except _DAMAGE as error:
        _log.warning("the catalog %s is damaged and is built again: %s", path, error)
    # An import that has it open goes on with the removed files.
    path.unlink()
    Path(f"{path}-lock").unlink(missing_ok=True)
    return Catalog(path, identity)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _check_length(env: lmdb.Environment, path: Path) -> None:
    """Reading a page behind the end of a file that was cut would kill the process with SIGBUS."""
    if (env.info()["last_pgno"] + 1) * env.stat()["psize"] > path.stat().st_size:
        raise lmdb.CorruptedError("it is cut short")


def _row(pack: bytes, chunk_id: bytes, offset: int, frame_bytes: int) -> bytes:
    unchecked = _ROW.pack(pack, offset, frame_bytes, 0)[:_UNCHECKED_BYTES]
    return unchecked + _COUNT.pack(zlib.crc32(chunk_id + unchecked))
