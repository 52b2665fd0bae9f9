"""Warming: ranges of an image are brought into L1, in order, because somebody says so.

It shares the places and the pace of jobs ahead, so demand goes first all the same; it never makes
L1 give up anything, and stops when L1 is full. What a store that is away has cost is asked for
again. Concurrency: event loop only.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import trio

from cachefs.errors import CachefsError, UsageError
from cachefs.index.manifest_table import ManifestTable
from cachefs.policy.prefetch.ledger import Entry
from cachefs.policy.prefetch.plan import Plan
from cachefs.policy.prefetch.seam import Wish
from cachefs.prefetch.gather import Batch, Limits, gather
from cachefs.prefetch.image import OpenImage
from cachefs.prefetch.jobs import AheadJobs
from cachefs.tiers.flight import Flight

logger = logging.getLogger(__name__)

_LOOK_S = 0.01
_ROOM_WAIT_S = 3.0
"""How long L1 may take to grow before it counts as full."""

_ROUND_CHUNKS = 4096
"""Of the plan at a time: a whole image would be a long list to walk without a pause."""

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0
"""Before what failed is asked for again."""

_LONGEST_OUTAGE_S = 60.0
"""Without a chunk that comes for so long, warming is given up."""

Ranges = Sequence[tuple[int, int]]
"""Of chunks: the first, and how many."""


@dataclass(slots=True)
class Progress:
    """How far a warming is. `state`: running, done, full (L1 is), cancelled, failed."""

    chunks: int
    """In all ranges."""
    looked_at: int = 0
    fetched_chunks: int = 0
    fetched_bytes: int = 0
    """Of chunks; those that were there already are not among them."""
    failed_chunks: int = 0
    """The last time they were asked for."""
    state: str = "running"

    def to_dict(self) -> dict[str, int | str]:
        """Return all of it by name."""
        return {name: getattr(self, name) for name in self.__slots__}


class Warming:
    """Warms ranges of one image; `bytes_per_s` of chunks at most, 0: as the pace allows."""

    def __init__(
        self,
        jobs: AheadJobs,
        limits: Limits,
        inode: int,
        table: ManifestTable,
        ranges: Ranges,
        bytes_per_s: int = 0,
        arm: str = "warm",
    ) -> None:
        self._jobs = jobs
        self._limits = limits
        self._image = OpenImage(inode, table)
        self._ranges = [
            (first, min(count, self._image.chunks - first)) for first, count in ranges if count > 0
        ]
        if any(first < 0 or count <= 0 for first, count in self._ranges):
            raise UsageError("a range lies outside of the image")
        self._bytes_per_s = bytes_per_s
        self._arm = arm
        self._under_way = 0
        self._calm = trio.Event()
        self._failed: list[int] = []
        self._free_s = 0.0
        self._came_s = 0.0
        self.scope = trio.CancelScope()
        self.progress = Progress(sum(count for _, count in self._ranges))

    async def run(self) -> None:
        """Warm until done, cancelled, or L1 is full."""
        self._came_s = trio.current_time()
        with self.scope:
            try:
                await self._run_all()
            except CachefsError as error:  # the table is damaged, or is gone
                logger.warning("warming ended: %s", error)
                self.progress.state = "failed"
        if self.scope.cancelled_caught:
            self.progress.state = "cancelled"

    async def _run_all(self) -> None:
        ranges, rounds = self._ranges, 0
        while ranges and self.progress.state == "running":
            for part in _rounds(ranges):
                await self._fetch(part)
            if self._under_way:
                self._calm = trio.Event()
                await self._calm.wait()
            failed, self._failed = sorted(set(self._failed)), []
            self.progress.failed_chunks = len(failed)
            ranges = [(index, 1) for index in failed]
            if failed and trio.current_time() - self._came_s > _LONGEST_OUTAGE_S:
                self.progress.state = "failed"
            if failed:
                rounds += 1
                await trio.sleep(min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**rounds))
        if self.progress.state == "running":
            self.progress.state = "done"

    async def _fetch(self, ranges: Ranges) -> None:
        """Fetch what is missing of some ranges, as places become free."""
        plan = Plan()
        for first, count in ranges:
            plan.add(self._arm, Wish(first, count, 1.0), 0.0)
        is_full_s: float | None = None
        while plan and self.progress.state == "running":
            now_s = trio.current_time()
            wait_s = self._jobs.wait_s(now_s)
            wait_s = _LOOK_S if wait_s is None else max(wait_s, self._free_s - now_s)
            if wait_s > 0:
                await trio.sleep(min(wait_s, 1.0))
                continue
            slots = self._jobs.spare_slots(self._image, may_evict=False)
            if not slots:
                is_full_s = is_full_s or now_s
                if now_s - is_full_s > _ROOM_WAIT_S:
                    self.progress.state = "full"
                await trio.sleep(_LOOK_S)
                continue
            is_full_s = None
            before = plan.chunks
            limits = self._limits.within(self._limits.plain_bytes, slots)
            # The plan's patience is for wishes of arms: an operator's do not grow old.
            batch = gather(self._image, plan, self._arm, 0.0, limits, self._jobs)
            if batch.refs:
                self._start(batch, now_s)
            self.progress.looked_at += before - plan.chunks
            await trio.lowlevel.checkpoint()

    def _start(self, batch: Batch, now_s: float) -> None:
        self._under_way += len(batch.refs)
        taken_bytes = self._jobs.start(batch, self._ended)
        left = batch.refs[_count_in(batch, taken_bytes) :]
        self._under_way -= len(left)
        self._failed += batch.indexes[len(batch.refs) - len(left) :]
        if self._bytes_per_s:
            self._free_s = max(self._free_s, now_s) + taken_bytes / self._bytes_per_s

    def _ended(self, entry: Entry, flight: Flight) -> None:
        self._under_way -= 1
        if not self._under_way:
            self._calm.set()
        if flight.landed_in is None:
            self._failed.append(entry.chunk)
            return
        self._came_s = trio.current_time()
        self.progress.fetched_chunks += 1
        self.progress.fetched_bytes += entry.plain_bytes


def _rounds(ranges: Ranges) -> Iterator[Ranges]:
    """Yield the same ranges in parts of at most _ROUND_CHUNKS chunks."""
    part: list[tuple[int, int]] = []
    room = _ROUND_CHUNKS
    for first, count in ranges:
        done = 0
        while done < count:
            taken = min(room, count - done)
            part.append((first + done, taken))
            done, room = done + taken, room - taken
            if not room:
                yield part
                part, room = [], _ROUND_CHUNKS
    if part:
        yield part


def _count_in(batch: Batch, taken_bytes: int) -> int:
    """Return how many of a batch's chunks were taken, given their bytes."""
    count = 0
    for ref in batch.refs:
        if taken_bytes < ref.plain_bytes:
            break
        taken_bytes -= ref.plain_bytes
        count += 1
    return count


def whole(table: ManifestTable) -> Ranges:
    """Return the one range that is all of an image."""
    return [(0, -(-table.size_bytes // table.chunk_bytes))]


def of_bytes(table: ManifestTable, begin: int, end: int) -> tuple[int, int]:
    """Return the chunks that have the bytes from `begin` to before `end`.

    Raises:
        UsageError: there are none.
    """
    end = min(end, table.size_bytes)
    if begin < 0 or end <= begin:
        raise UsageError(f"{begin} to {end} is no part of an image of {table.size_bytes} bytes")
    first = begin // table.chunk_bytes
    return first, (end - 1) // table.chunk_bytes + 1 - first
