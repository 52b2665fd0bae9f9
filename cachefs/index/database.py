"""The LMDB environment of a cache folder, and what happens when it is damaged."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import lmdb

from cachefs.errors import CacheError
from cachefs.units import GIB

logger = logging.getLogger(__name__)

MAP_BYTES = 64 * GIB
"""Address space, not memory and not disk: enough for the index of 100 million chunks."""

DATABASES = (
    "meta",
    "residency",
    "slots",
    "extents",
    "images",
    "versions",
    "values",
    "profiles",
)

_DAMAGE = (
    lmdb.InvalidError,
    lmdb.CorruptedError,
    lmdb.PageNotFoundError,
    lmdb.VersionMismatchError,
)
_UNWRITTEN_PAGES = 64
"""LMDB does not write pages at the end that a transaction took and gave back: some, never many."""


class Database:
    """The environment and its named databases.

    meta: text -> JSON. residency: chunk id -> record. slots: slot number -> chunk id.
    extents: class and extent -> bitmap of resident slots. images: name -> JSON.
    versions: inode -> JSON. values: BLAKE3 of a key -> what `cachefs.api` keeps of its value.
    profiles: name -> time and profile (policy/prefetch/profile.py).

    Concurrency: reading transactions of the event loop, one writing transaction at a time in
    threads.
    """

    def __init__(self, env: lmdb.Environment) -> None:
        self.env = env
        (
            self.meta,
            self.residency,
            self.slots,
            self.extents,
            self.images,
            self.versions,
            self.values,
            self.profiles,
        ) = (env.open_db(name.encode()) for name in DATABASES)

    def close(self) -> None:
        """Close the environment; all transactions have to be over."""
        self.env.close()


def open_database(path: Path, segments_path: Path) -> tuple[Database, bool]:
    """Open the index, making a new one where there is none or the old one is damaged.

    Returns the database and whether it is new; with a new one the segments are removed, since
    nothing says what they hold. That costs warmth only.

    Raises:
        CacheError: the disk does not let us.
    """
    data = path / "data.mdb"
    try:
        if data.exists() and data.stat().st_size:
            return _open(path), False
    except _DAMAGE as error:
        logger.warning("the index %s is damaged (%s): L1 starts empty", path, error)
    except (lmdb.Error, OSError) as error:  # says nothing of what is in it
        raise CacheError(f"cannot open the index {path}: {error}") from error
    try:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        for segment in segments_path.iterdir():
            segment.unlink()
        path.mkdir()
        lmdb.open(str(path), map_size=MAP_BYTES, max_dbs=len(DATABASES)).close()
        return _open(path), True
    except (lmdb.Error, OSError) as error:
        raise CacheError(f"cannot make the index {path}: {error}") from error


def _open(path: Path) -> Database:
    # No metasync: after a power failure the last commits may be missing, but the file is whole.
    env = lmdb.open(
        str(path),
        map_size=MAP_BYTES,
        max_dbs=len(DATABASES),
        metasync=False,
        max_readers=64,
        create=False,
    )
    try:
        _check_length(env, path)
        return Database(env)
    except BaseException:
        env.close()
        raise


def _check_length(env: lmdb.Environment, path: Path) -> None:
    """Refuse a file that was cut: a page mapped behind its end would end the daemon with SIGBUS.

    A file that may only lack unwritten pages is made longer: a page of zeros that is needed after
    all is an error of LMDB's, and no signal.
    """
    data, page_bytes = path / "data.mdb", env.stat()["psize"]
    pages = env.info()["last_pgno"] + 1
    size_bytes = data.stat().st_size
    if (pages - _UNWRITTEN_PAGES) * page_bytes > size_bytes:
        raise lmdb.CorruptedError("it was cut short")
    if pages * page_bytes > size_bytes:
        os.truncate(data, pages * page_bytes)
