"""The manifest tables of the images that are in use: local copies, fetched when first needed.

Concurrency: event loop only; two that ask for the same table share one fetch.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import trio

from cachefs.errors import CacheError, TableDamagedError
from cachefs.index.manifest_table import ManifestTable, PageCache
from cachefs.tiers.jobs import TableJob
from cachefs.tiers.pool import FetcherPool
from cachefs.units import MIB

logger = logging.getLogger(__name__)

_TABLE_PRIORITY = 0
_PAGE_CACHE_BYTES = 8 * MIB
"""The records of about 190,000 chunks: 12 GiB of images in 64 KiB chunks under random reads."""

_MAX_OPEN = 1024
"""Tables with an open file; the oldest is given up, and closes with its last reader."""

_FIRST_PAUSE_S = 0.1


class Tables:
    """Local tables by manifest id.

    They lie in the first of `folders` that takes them; the second, on another disk or in memory,
    is for a cache disk that is full or broken.
    """

    def __init__(self, folders: Sequence[Path], pool: FetcherPool) -> None:
        self._folders = folders
        self._pool = pool
        self._pages = PageCache(_PAGE_CACHE_BYTES)
        self._open: OrderedDict[str, ManifestTable] = OrderedDict()
        self._locks: dict[str, trio.Lock] = {}

    def opened(self, manifest_id: str) -> ManifestTable | None:
        """Return a table that is open already."""
        return self._open.get(manifest_id)

    async def get(self, manifest_id: str, deadline_s: float) -> ManifestTable:
        """Return a table, fetching the manifest if this host has none; tries until the deadline.

        Raises:
            CachefsError: it can't be had, or is corrupt in the store.
            trio.TooSlowError: not before the deadline.
        """
        lock = self._locks.setdefault(manifest_id, trio.Lock())
        try:
            with trio.fail_at(deadline_s):
                async with lock:
                    table = self._open.get(manifest_id) or self._local(manifest_id)
                    paths = self._paths(manifest_id)
                    while table is None and paths:
                        await self._fetch(manifest_id, paths)
                        table = self._local(manifest_id)
                        paths = paths[1:]  # a disk may take what it does not give back
                    if table is None:
                        raise CacheError(f"the table of manifest {manifest_id[:16]} went away")
                    self._keep(manifest_id, table)
        finally:
            if not lock.locked():
                self._locks.pop(manifest_id, None)
        return table

    def discard(self, manifest_id: str) -> None:
        """Remove a local table that is damaged, or not needed any more.

        It stays open for those who read it now.
        """
        self._open.pop(manifest_id, None)
        for path in self._paths(manifest_id):
            _remove(path)

    def forget_all_but(self, manifest_ids: set[str]) -> None:
        """Remove the local tables that no image needs any more."""
        for folder in self._folders:
            for path in folder.iterdir():
                if path.name not in manifest_ids:
                    path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close all tables."""
        for table in self._open.values():
            table.close()
        self._open.clear()

    def _local(self, manifest_id: str) -> ManifestTable | None:
        for path in self._paths(manifest_id):
            try:
                return ManifestTable(path, self._pages)
            except FileNotFoundError:
                continue
            except (TableDamagedError, CacheError, OSError) as error:
                logger.warning("%s; it is fetched again", error)
                _remove(path)
        return None

    def _paths(self, manifest_id: str) -> list[Path]:
        return [folder / manifest_id for folder in self._folders]

    async def _fetch(self, manifest_id: str, paths: Sequence[Path]) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            job = TableJob(self._pool.next_number(), manifest_id, tuple(map(str, paths)))
            try:
                await self._pool.ask(job, _TABLE_PRIORITY)
                return
            except Exception as error:
                if not getattr(error, "transient", False):
                    raise
            await trio.sleep(pause_s)
            pause_s = min(2.0, pause_s * 2)

    def _keep(self, manifest_id: str, table: ManifestTable) -> None:
        self._open[manifest_id] = table
        self._open.move_to_end(manifest_id)
        if len(self._open) > _MAX_OPEN:
            self._open.popitem(last=False)


def _remove(path: Path) -> None:
    """Remove a table, if the disk lets us: a full or broken one must not fail a read."""
    with suppress(OSError):
        path.unlink()
