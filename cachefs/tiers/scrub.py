"""The scrub: reads all of L1 again at a low rate and drops what is not what its id says.

A chunk that is dropped is fetched again by the next read, so a bad sector or a flipped bit costs
one fetch. The scrub also ends the suspicion after an unclean stop, when it has seen everything.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import lmdb
import trio

from cachefs.index.residency import Placement
from cachefs.metrics import Metrics
from cachefs.model.chunk import chunk_id
from cachefs.tiers.l1 import L1
from cachefs.units import MIB

logger = logging.getLogger(__name__)

_BATCH_CHUNKS = 256
_PAUSE_BETWEEN_PASSES_S = 3600.0

_GROUP_BYTES = MIB
"""Verified in one visit to a thread: a visit to a thread costs 60 to 160 us."""

_Resident = tuple[bytes, Placement]
"""The id of a chunk, and where it is."""


_DISK_PAUSE_S = 0.5


class Scrub:
    """Verifies L1 in the order of slots."""

    def __init__(self, l1: L1, rate_bytes_per_s: int, metrics: Metrics) -> None:
        self._l1 = l1
        self._rate = rate_bytes_per_s
        self._metrics = metrics
        self._unread = 0
        """Chunks that could not be read because the disk failed altogether; they were kept."""

    async def run(self) -> None:
        """Scrub for ever, if there is a rate."""
        while self._rate:
            await self.scrub_once(self._rate)
            await trio.sleep(_PAUSE_BETWEEN_PASSES_S)

    async def scrub_once(self, rate_bytes_per_s: int = 0) -> tuple[int, int]:
        """Verify all that L1 holds; 0 is full speed. Returns how many chunks were read, and bad."""
        slot, read, bad, unread = -1, 0, 0, self._unread
        while True:
            rows = await trio.to_thread.run_sync(self._l1.residency.scan, slot, _BATCH_CHUNKS)
            if not rows:
                break
            slot = rows[-1][0]
            for group in self._groups(rows):
                while self._l1.is_left:  # noqa: ASYNC110 - whoever waits longest may look seldom
                    await trio.sleep(_DISK_PAUSE_S)
                read += len(group)
                bad += await self._verify(group)
                if rate_bytes_per_s:
                    size_bytes = sum(placement.plain_bytes for _, placement in group)
                    await trio.sleep(size_bytes / rate_bytes_per_s)
        self._metrics.scrub_passes += 1
        if self._unread != unread:
            return read, bad  # nobody knows what was there
        try:
            await trio.to_thread.run_sync(self._l1.epoch.trust_all)
        except lmdb.Error as error:  # then it is for this run only
            logger.warning("cannot write down that L1 is verified: %s", error)
        return read, bad

    def _groups(self, rows: list[tuple[int, bytes]]) -> Iterator[list[_Resident]]:
        """Yield the chunks that are still where the index had them, some at a time."""
        group: list[_Resident] = []
        size_bytes = 0
        for slot, found in rows:
            placement = self._l1.find(found)
            if placement is None or placement.slot != slot:
                continue
            group.append((found, placement))
            size_bytes += placement.plain_bytes
            if size_bytes >= _GROUP_BYTES:
                yield group
                group, size_bytes = [], 0
        if group:
            yield group

    async def _verify(self, group: list[_Resident]) -> int:
        """Verify chunks in one visit to a thread, and drop the bad ones; return how many."""
        places = [(*self._l1.place(placement.slot), placement) for _, placement in group]
        for _, placement in group:
            self._l1.pin(placement.slot)
        try:
            found = await trio.to_thread.run_sync(_read_ids, places)
        finally:
            for _, placement in group:
                self._l1.unpin(placement.slot)
        bad = 0
        for (expected, placement), (actual, problem) in zip(group, found, strict=True):
            self._metrics.scrubbed_chunks += 1
            if actual == expected:
                if self._l1.is_suspect(placement):
                    self._l1.verified(expected, placement)
                continue
            if problem:
                self._l1.health.failed()
                if self._l1.is_left:  # it is the disk, and not this chunk
                    self._unread += 1
                    continue
            bad += 1
            logger.warning(
                "scrub: chunk %s in L1 %s; dropped, the next read fetches it",
                expected.hex()[:16],
                problem or "is not what its id says",
            )
            self._metrics.l1_corrupt += 1
            self._l1.drop(expected, placement.slot)
        return bad


def _read_ids(places: list[tuple[int, int, Placement]]) -> list[tuple[bytes, str]]:
    """In a thread: return the id of what each place holds, or why it cannot be read."""
    ids: list[tuple[bytes, str]] = []
    for fd, position, placement in places:
        try:
            ids.append((chunk_id(os.pread(fd, placement.plain_bytes, position)), ""))
        except OSError as error:
            ids.append((b"", f"cannot be read: {error.strerror}"))
    return ids
