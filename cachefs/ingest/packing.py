"""Puts frames into packs in image order, and writes full packs in threads of its own.

A chunk is in hand from when its frame is put into a pack until that pack is in the store and in the
catalog; so at any time each chunk of the import is in hand or found in the catalog, and the memory
that this takes does not grow with the image. All methods are for the thread that assembles.
"""

from __future__ import annotations

import logging
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

from cachefs.ingest.catalog import Catalog, PackContent
from cachefs.store.pack import TARGET_PACK_BYTES, PackWriter
from cachefs.store.store import Store

_log = logging.getLogger(__name__)

PACKS_IN_FLIGHT = 4
"""Full packs in memory at once: enough to hide the time to store one, 128 MiB with their copies."""

Location = tuple[int, int, int]
"""Number of the pack in this import, offset and length of the frame."""


class Packing:
    """The packs of one import. `in_hand`: chunks that the catalog does not find yet."""

    def __init__(self, store: Store, catalog: Catalog) -> None:
        self.in_hand: dict[bytes, Location] = {}
        self.packs: list[bytes] = []
        """Ids of the packs of the image by number; of those that are not finished, empty."""
        self.packs_written = 0
        self._store = store
        self._catalog = catalog
        self._numbers: dict[bytes, int] = {}
        self._writers = ThreadPoolExecutor(PACKS_IN_FLIGHT, "pack")
        self._in_flight: deque[tuple[int, Future[tuple[PackContent, bool]]]] = deque()
        self._open = PackWriter()
        self._frames: list[tuple[bytes, int, int]] = []
        self._number = -1

    def number_of(self, pack: bytes) -> int:
        """Return the number of a pack that was in the store before."""
        number = self._numbers.get(pack)
        if number is None:
            number = self._numbers[pack] = len(self.packs)
            self.packs.append(pack)
        return number

    def add(self, chunk_id: bytes, frame: bytes, plain_bytes: int) -> Location:
        """Put a frame into the open pack, and write the pack if it is full."""
        if not self._frames:
            self._number = len(self.packs)
            self.packs.append(b"")
        offset = self._open.add(chunk_id, frame, plain_bytes)
        self._frames.append((chunk_id, offset, len(frame)))
        location = self.in_hand[chunk_id] = (self._number, offset, len(frame))
        if self._open.size_bytes >= TARGET_PACK_BYTES:
            self._write()
        return location

    def settle(self) -> None:
        """Let go of what has come into the catalog; raises what went wrong with writing a pack."""
        while self._in_flight and self._in_flight[0][1].done():
            self._settle_oldest()

    def finish(self) -> None:
        """Write the last pack and wait until all are stored."""
        if self._frames:
            self._write()
        while self._in_flight:
            self._settle_oldest()

    def close(self) -> None:
        """End the threads; packs that no thread has begun to write are given up."""
        self._writers.shutdown(cancel_futures=True)

    def _write(self) -> None:
        if len(self._in_flight) >= PACKS_IN_FLIGHT:
            # Waits, but lets go of nothing: the batch being assembled relies on what is in hand.
            self._in_flight[-PACKS_IN_FLIGHT][1].result()
        future = self._writers.submit(self._store_pack, self._open, self._frames)
        self._in_flight.append((self._number, future))
        self._open, self._frames = PackWriter(), []

    def _store_pack(
        self, writer: PackWriter, frames: list[tuple[bytes, int, int]]
    ) -> tuple[PackContent, bool]:
        pack, data = writer.finish()
        self._store.put_pack(pack, data)
        content = PackContent(pack, frames)
        return content, self._catalog.add([content])

    def _settle_oldest(self) -> None:
        number, future = self._in_flight.popleft()
        content, is_found = future.result()
        self.packs[number] = content.pack
        self._numbers[content.pack] = number
        self.packs_written += 1
        _log.debug("stored pack %s with %d frames", content.pack.hex(), len(content.frames))
        if is_found:
            for chunk_id, _, _ in content.frames:
                del self.in_hand[chunk_id]
