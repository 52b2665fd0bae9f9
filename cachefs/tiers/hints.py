"""Hints in the background: what an image that was opened has in L1 already, the lane is told.

Without it the lane would learn of each chunk only when the daemon has answered a read of it once:
after a restart of the host, or when another image brought the chunk in.

Concurrency: event loop only. It works in short steps with pauses, and gives way to reads.
"""

from __future__ import annotations

import logging
from collections import deque

import trio

from cachefs.errors import CachefsError
from cachefs.index.manifest_table import ManifestTable
from cachefs.tiers.l1 import L1

logger = logging.getLogger(__name__)

_STEP_CHUNKS = 128
"""Looked up in one step: about 0.5 ms of the event loop."""

_PAUSE_S = 0.002
"""After each step: at most a fifth of a core, 50,000 chunks (3 GiB of an image) a second."""


class Hints:
    """Publishes what L1 holds of images, one image after the other."""

    def __init__(self, l1: L1) -> None:
        self._l1 = l1
        self._waiting: deque[tuple[int, ManifestTable]] = deque()
        self._known: set[int] = set()
        self._arrived = trio.Event()

    def opened(self, inode: int, table: ManifestTable) -> None:
        """An image was opened. Its chunks are published once; later ones, when they come in."""
        if inode not in self._known:
            self._known.add(inode)
            self._waiting.append((inode, table))
            self._arrived.set()

    async def run(self) -> None:
        """Publish until cancelled."""
        while True:
            if not self._waiting:
                self._arrived = trio.Event()
                await self._arrived.wait()
            inode, table = self._waiting.popleft()
            if self._l1.is_empty:
                continue
            try:
                await self._publish(inode, table)
            except CachefsError as error:  # a read will say, and mend it
                logger.debug("no hints for the whole image: %s", error)

    async def _publish(self, inode: int, table: ManifestTable) -> None:
        chunks = -(-table.size_bytes // table.chunk_bytes)
        for begin in range(0, chunks, _STEP_CHUNKS):
            for index in range(begin, min(begin + _STEP_CHUNKS, chunks)):
                found = table.id_at(index)
                placement = self._l1.find(found) if found else None
                if placement is not None and not self._l1.is_suspect(placement):
                    self._l1.board.publish(inode, index, found, placement.slot)
            await trio.sleep(_PAUSE_S)
