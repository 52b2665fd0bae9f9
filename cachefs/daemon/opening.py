"""What a daemon opens before it serves: the cache folder, or a spare one while its disk fails.

A guest whose mount is up must not die because the next daemon cannot open the cache. Such a daemon
takes the spare folder, which lies beside the mount's sockets and holds the names that the kernel
may know: it serves from the other tiers and keeps nothing, while the lane goes on with its hits.
When the disk answers again, it ends for a daemon that has L1. A mount that only begins is refused.
"""

from __future__ import annotations

import logging
import os
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from cachefs.config import Config
from cachefs.daemon.cache import Cache, open_cache
from cachefs.daemon.supervised import Start
from cachefs.errors import CacheError, CachefsError, StoreUnavailableError
from cachefs.index.check import check_folder
from cachefs.index.database import open_database
from cachefs.index.folder import CacheFolder, cached_identity, open_folder
from cachefs.index.names import Names
from cachefs.metrics import Metrics
from cachefs.store.s3_settings import S3Settings
from cachefs.store.store import open_store
from cachefs.tiers.board import Board

logger = logging.getLogger(__name__)

_STORE_WAIT_S = 20.0
"""How long a start waits for the store to say who it is."""

_DISK_WAIT_S = 10.0
"""How long it waits for the cache's disk to give what it needs."""

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 10.0
"""Between looks at a disk that failed."""


@dataclass(frozen=True, slots=True)
class Opened:
    """What is open: `folder` is the cache folder, or the spare one (`is_spare`) without an L1."""

    folder: CacheFolder
    identity: str
    cache: Cache
    names: Names
    lock_fd: int
    """For fetchers, which write to slots. Without L1 it holds no lock: one of them that hangs on
    the store must not keep the next daemon out of the spare folder."""
    manifests: tuple[Path, ...]
    """Where local tables may lie; the first that takes them has them."""
    is_spare: bool
    _others: ExitStack

    def close(self) -> None:
        """Give up the folders; the cache has been closed."""
        self._others.close()


async def open_for(config: Config, start: Start, metrics: Metrics, board: Board) -> Opened:
    """Open what a daemon needs.

    Raises:
        CachefsError: it cannot be had.
    """
    path, spare_path = Path(config.l1.dir), start.run_dir / "spare"
    if start.fresh:
        await trio.to_thread.run_sync(partial(shutil.rmtree, spare_path, ignore_errors=True))
    identity = await _store_identity(config, [] if start.fresh else [path, spare_path])
    with ExitStack() as others:
        try:
            if not start.fresh:
                await _check(path, identity, whole=start.is_wary)
            folder = await trio.to_thread.run_sync(open_folder, path, identity)
            others.callback(folder.close)
            cache = open_cache(folder, config, metrics, board)
        except CachefsError as error:
            if start.fresh:
                raise
            logger.warning("%s: serving without L1 until its disk is well", error)
            return await _open_spare(spare_path, identity, config, metrics)
        names = Names(cache.database)
        manifests: tuple[Path, ...] = (folder.manifests_path,)
        try:
            spare = await trio.to_thread.run_sync(open_folder, spare_path, identity)
            others.callback(spare.close)
            database, _ = open_database(spare.index_path, spare.segments_path)
            others.callback(database.close)
            _note_start(spare, is_spare=False)
        except CachefsError as error:  # it is for a trouble that there may never be
            logger.warning("without a spare folder: %s", error)
        else:
            names, manifests = Names(cache.database, database), (*manifests, spare.manifests_path)
        rest = others.pop_all()
        return Opened(folder, identity, cache, names, folder.lock_fd, manifests, False, rest)


async def until_well(path: Path, opened: Opened) -> None:
    """Return when a cache folder can be used again, in place of the spare one that is open.

    If it looked well and could not be opened after all, it is left alone for longer each time.
    """
    starts = _note_start(opened.folder, is_spare=True)
    pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** (starts - 1))
    one = trio.CapacityLimiter(1)
    while True:
        await trio.sleep(pause_s)
        try:
            # However long it takes: to read the whole index brings it into memory, too.
            await trio.to_thread.run_sync(
                partial(check_folder, path, opened.identity, whole=True),
                abandon_on_cancel=True,
                limiter=one,
            )
        except CachefsError as error:
            logger.info("%s", error)
            pause_s = min(_LONGEST_PAUSE_S, 2 * pause_s)
        else:
            return


async def _check(path: Path, identity: str, *, whole: bool) -> None:
    """Look at the disk of a cache folder, in a thread that may hang.

    Raises:
        CachefsError: it fails, or does not answer in time.
    """
    try:
        with trio.fail_after(_DISK_WAIT_S):
            await trio.to_thread.run_sync(
                partial(check_folder, path, identity, whole=whole), abandon_on_cancel=True
            )
    except trio.TooSlowError as error:
        raise CacheError(f"the disk of {path} did not answer in {_DISK_WAIT_S:.0f} s") from error


async def _open_spare(path: Path, identity: str, config: Config, metrics: Metrics) -> Opened:
    """Open a cache that keeps nothing, and does not touch what the lane knows of L1."""
    with ExitStack() as others:
        spare = await trio.to_thread.run_sync(open_folder, path, identity)
        others.callback(spare.close)
        cache = open_cache(spare, config, metrics, quota_bytes=0)
        while not cache.l1.is_left:
            cache.l1.health.failed()
        metrics.l1_left = 1
        lock_fd = os.open(path / "lock", os.O_RDONLY | os.O_CLOEXEC)
        others.callback(os.close, lock_fd)
        names, manifests = Names(cache.database), (spare.manifests_path,)
        return Opened(spare, identity, cache, names, lock_fd, manifests, True, others.pop_all())


def _note_start(spare: CacheFolder, *, is_spare: bool) -> int:
    """Count the starts in a row that had no L1, over daemons; return their number."""
    path = spare.path / "starts-without-l1"
    try:
        starts = len(path.read_bytes()) + 1 if path.exists() else 1
        if is_spare:
            path.write_bytes(b"." * min(starts, 16))
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("cannot count starts in %s: %s", path, error)
        return 1
    return starts


async def _store_identity(config: Config, folders: list[Path]) -> str:
    """Ask the store who it is, unless one of `folders` knows: those of a daemon before.

    So what L1 holds is served at once, whether the store is there, away, or another one by now:
    the fetchers compare.
    """
    known = next(filter(None, map(cached_identity, folders)), None)
    if known is not None:
        return known
    try:
        with trio.fail_after(_STORE_WAIT_S):
            store = await trio.to_thread.run_sync(
                open_store, config.store.url, fetchers_s3(config), abandon_on_cancel=True
            )
        return store.identity
    except trio.TooSlowError as error:
        raise StoreUnavailableError(
            f"{config.store.url} does not answer within {_STORE_WAIT_S:.0f} s"
        ) from error


def fetchers_s3(config: Config) -> S3Settings | None:
    """Return how fetchers reach S3; None if the store is not there."""
    is_on_s3 = config.store.url.startswith("s3://")
    return S3Settings(**config.fetchers_s3().model_dump()) if is_on_s3 else None
