"""The scrub: reads all of L1 again at a low rate and drops what is not what its id says.

A chunk that is dropped is fetched again by the next read, so a bad sector or a flipped bit costs
one fetch. The scrub also ends the suspicion after an unclean stop, when it has seen everything.
"""

from __future__ import annotations

import logging
import os

import lmdb
import trio

from cachefs.index.residency import Placement
from cachefs.metrics import Metrics
from cachefs.model.chunk import chunk_id
from cachefs.tiers.l1 import L1

logger = logging.getLogger(__name__)

_BATCH_CHUNKS = 64
_PAUSE_BETWEEN_PASSES_S = 3600.0


class Scrub:
    """Verifies L1 in the order of slots."""

    def __init__(self, l1: L1, rate_bytes_per_s: int, metrics: Metrics) -> None:
        self._l1 = l1
        self._rate = rate_bytes_per_s
        self._metrics = metrics

    async def run(self) -> None:
        """Scrub for ever, if there is a rate."""
        while self._rate:
            await self.scrub_once(self._rate)
            await trio.sleep(_PAUSE_BETWEEN_PASSES_S)

    async def scrub_once(self, rate_bytes_per_s: int = 0) -> tuple[int, int]:
        """Verify all that L1 holds; 0 is full speed. Returns how many chunks were read, and bad."""
        slot, read, bad = -1, 0, 0
        while True:
            rows = await trio.to_thread.run_sync(self._l1.residency.scan, slot, _BATCH_CHUNKS)
            if not rows:
                break
            for slot, found in rows:
                placement = self._l1.find(found)
                if placement is None or placement.slot != slot:
                    continue
                read += 1
                bad += not await self._verify(found, placement)
                if rate_bytes_per_s:
                    await trio.sleep(placement.plain_bytes / rate_bytes_per_s)
        self._metrics.scrub_passes += 1
        try:
            await trio.to_thread.run_sync(self._l1.epoch.trust_all)
        except lmdb.Error as error:  # then it is for this run only
            logger.warning("cannot write down that L1 is verified: %s", error)
        return read, bad

    async def _verify(self, expected: bytes, placement: Placement) -> bool:
        fd, position = self._l1.place(placement.slot)
        self._l1.pin(placement.slot)
        try:
            plain = await trio.to_thread.run_sync(os.pread, fd, placement.plain_bytes, position)
            right = chunk_id(plain) == expected
            why = "is not what its id says"
        except OSError as error:
            right, why = False, f"cannot be read: {error.strerror}"
        finally:
            self._l1.unpin(placement.slot)
        self._metrics.scrubbed_chunks += 1
        if right:
            if self._l1.is_suspect(placement):
                self._l1.verified(expected, placement)
            return True
        logger.warning(
            "scrub: chunk %s in L1 %s; dropped, the next read fetches it", expected.hex()[:16], why
        )
        self._metrics.l1_corrupt += 1
        self._l1.drop(expected, placement.slot)
        return False
