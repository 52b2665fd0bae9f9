"""Jobs ahead of demand: what may be started now, and what comes of it.

Whoever fetches ahead, for an arm or for an operator, does it through these, so that all of it
together keeps to the places at the fetchers, the pace of the store and the free slots of L1.

Concurrency: event loop only.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from cachefs.errors import CacheError
from cachefs.metrics import Metrics
from cachefs.policy.prefetch.ledger import Entry
from cachefs.policy.prefetch.pace import Pace
from cachefs.prefetch.gather import Batch
from cachefs.prefetch.image import OpenImage
from cachefs.tiers.flight import Flight
from cachefs.tiers.l1 import L1
from cachefs.tiers.stack import Stack
from cachefs.units import MIB

Ended = Callable[[Entry, Flight], None]
"""Told of a chunk that has come, or has not."""


class AheadJobs:
    """The jobs ahead of one mount; see Residents in gather.py for what it knows of chunks."""

    def __init__(
        self, l1: L1, stack: Stack, metrics: Metrics, pace: Pace, most_bytes: int = 32 * MIB
    ) -> None:
        self._l1 = l1
        self._stack = stack
        self._metrics = metrics
        self._retries_seen = 0
        self.pace = pace
        self.under_way = 0
        self._most_bytes = most_bytes
        self._under_way_bytes = 0
        """Of frames, at most `most_bytes` and one job."""
        self.on_answered: Callable[[], None] = lambda: None
        """Called when a job has ended and its place is free."""

    def wait_s(self, now_s: float) -> float | None:
        """Return when one more may start: 0 is now, None when another has ended."""
        if self._under_way_bytes >= self._most_bytes:
            return None
        return self.pace.wait_s(self.under_way, now_s)

    def spare_slots(self, image: OpenImage, *, may_evict: bool = True) -> int:
        """Return how many free slots demand can do without.

        Without `may_evict` the keeper must not come to give up chunks for it: where L1 has not
        far to grow, so many stay free that it does nothing.
        """
        try:
            slots = self._l1.class_for(image.chunk_bytes)
        except CacheError:
            return 0
        needed = slots.low // 2
        growth_bytes = self._l1.quota_bytes - self._l1.allocated_bytes
        far_bytes = max(slots.segment.extent_bytes, slots.high * slots.segment.slot_bytes)
        if not may_evict and growth_bytes < far_bytes:
            needed = slots.low
        spare = len(slots.free) - needed
        if spare <= 0 and not slots.is_hopeless:
            self._l1.wake.set()
        return max(0, spare)

    def is_needed(self, image: OpenImage, index: int, chunk_id: bytes) -> bool:
        """Whether a chunk is neither here nor under way; one that is here the lane is told of."""
        if self._stack.is_under_way(chunk_id):
            return False
        placement = self._l1.find(chunk_id)
        if placement is None:
            return True
        if not self._l1.is_suspect(placement):
            self._l1.board.publish(image.inode, index, chunk_id, placement.slot)
        return False

    def is_zero(self, image: OpenImage, index: int) -> None:
        """The lane is told of a chunk of zeros."""
        self._l1.board.publish_zero(image.inode, index)

    def start(self, batch: Batch, ended: Ended) -> int:
        """Start a job; returns the bytes of the chunks that it brings, 0 if L1 had no slot."""
        now_s = trio.current_time()
        image = batch.image
        entries = {
            ref.id: Entry(batch.arm, image, index, ref.plain_bytes, ref.frame_bytes, now_s)
            for index, ref in zip(batch.indexes, batch.refs, strict=True)
        }

        def chunk_ended(flight: Flight) -> None:
            entry = entries[flight.ref.id]
            if flight.landed_in is not None:
                self._metrics.ahead_chunks += 1
                self._metrics.ahead_frame_bytes += entry.frame_bytes
                board = self._l1.board
                board.publish(image.inode, entry.chunk, flight.ref.id, flight.landed_in)
            ended(entry, flight)

        def answered(is_there: bool) -> None:
            self._under_way_bytes -= batch.frame_bytes
            self._answered(batch.plain_bytes, trio.current_time() - now_s, is_there=is_there)

        self.under_way += 1
        refs = batch.refs
        count = self._stack.fetch_ahead(refs, image.chunk_bytes, chunk_ended, answered)
        if not count:
            self.under_way -= 1
            return 0
        self._under_way_bytes += batch.frame_bytes
        self.pace.asked(batch.frame_bytes, now_s)
        self._metrics.ahead_requests += 1
        self._metrics.ahead_jobs = self.under_way
        return sum(ref.plain_bytes for ref in refs[:count])

    def look(self, now_s: float) -> None:
        """Once a second: where demand has to try again, what is ahead of it has to wait."""
        if self._metrics.l3_retries > self._retries_seen:
            self.pace.failed(now_s)
        self._retries_seen = self._metrics.l3_retries

    def _answered(self, plain_bytes: int, duration_s: float, *, is_there: bool) -> None:
        now_s = trio.current_time()
        self.under_way -= 1
        self._metrics.ahead_jobs = self.under_way
        if is_there:
            self.pace.answered(plain_bytes, duration_s, now_s)
        else:
            self.pace.failed(now_s)
        self.on_answered()
