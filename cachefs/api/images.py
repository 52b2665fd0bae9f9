"""Images of a store, read without a mount. Concurrency: event loop only."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from cachefs.errors import TableDamagedError
from cachefs.index.manifest_table import ManifestTable
from cachefs.reader import MAX_READ_BYTES, Reader
from cachefs.store.store import Store
from cachefs.tiers.tables import Tables

_AHEAD = 4
"""Reads of 1 MiB under way at once while an image is warmed up."""


class Images:
    """The images of one store. A name means the version that was newest when it was first read."""

    def __init__(self, store: Store, tables: Tables, reader: Reader, deadline_s: float) -> None:
        self._store = store
        self._tables = tables
        self._reader = reader
        self._deadline_s = deadline_s
        self._manifests: dict[str, str] = {}

    async def read(self, name: str, offset: int, size_bytes: int) -> bytes:
        """Return bytes of an image; fewer at its end."""
        parts: list[bytes] = []
        async with self._table(name) as table:
            end = min(offset + size_bytes, table.size_bytes)
            while offset < end:
                want = min(MAX_READ_BYTES, end - offset)
                parts.append(bytes(await self._reader.read(table, offset, want)))
                offset += want
        return b"".join(parts)

    async def warm_up(self, name: str, offset: int, size_bytes: int | None) -> int:
        """Bring a part of an image into L1 (None: up to its end), and return its size in bytes."""
        async with self._table(name) as table:
            end: int = table.size_bytes
            if size_bytes is not None:
                end = min(end, offset + size_bytes)
            room = trio.CapacityLimiter(_AHEAD)

            async def read_one(at: int, want: int) -> None:
                try:
                    await self._reader.read(table, at, want)
                finally:
                    room.release_on_behalf_of(at)

            async with trio.open_nursery() as nursery:
                for at in range(offset, end, MAX_READ_BYTES):
                    await room.acquire_on_behalf_of(at)
                    nursery.start_soon(read_one, at, min(MAX_READ_BYTES, end - at))
        return max(0, end - offset)

    @asynccontextmanager
    async def _table(self, name: str) -> AsyncIterator[ManifestTable]:
        """Give the table of an image; a damaged one is fetched again at the next call."""
        manifest = self._manifests.get(name)
        if manifest is None:
            image, _ = await trio.to_thread.run_sync(self._store.image, name)
            manifest = self._manifests[name] = image.current.manifest
        try:
            yield await self._tables.get(manifest, trio.current_time() + self._deadline_s)
        except TableDamagedError:
            self._tables.discard(manifest)
            raise

    def forget(self) -> None:
        """Look names up anew, so that newer versions are seen."""
        self._manifests.clear()
