"""The prefetcher: tells the arms what is read, and fetches what they wish for through the stack.

Demand goes first: jobs ahead have places of their own at the fetchers and none of demand's, a
reader that wants a chunk that is under way joins its flight, and what fails here is seen by nobody
and not tried again. A job is put together when there is a place for it, so what was read meanwhile
is left out; chunks that have come are published at once, for the lane to answer from.

Concurrency: event loop only. `run` does what is to be done soon; everything else is synchronous.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import trio

from cachefs.config import PrefetchSection
from cachefs.errors import CachefsError
from cachefs.index.manifest_table import ManifestTable
from cachefs.metrics import Metrics
from cachefs.policy.prefetch.ledger import End
from cachefs.policy.prefetch.replay import Replay
from cachefs.policy.prefetch.seam import Access, Arm, Wish
from cachefs.policy.prefetch.sequential import Sequential
from cachefs.prefetch.books import Books
from cachefs.prefetch.condense import Condenser, Span
from cachefs.prefetch.cpu_share import CpuShare
from cachefs.prefetch.gather import Batch, Limits, gather
from cachefs.prefetch.image import OpenImage
from cachefs.prefetch.jobs import AheadJobs
from cachefs.tiers.l1 import L1
from cachefs.units import MIB

logger = logging.getLogger(__name__)

_REST_S = 0.001
"""Between two turns: misses that come together are seen together."""

_CALM_REST_S = 0.004
"""So much longer, while readers find what they want here or under way: what they read costs the
less to look at, the more of it there is."""

_LOOK_S = 1.0
_PATIENCE_S = 120.0
"""What was fetched ahead and not read for so long was wasted."""

_CLOSED_PATIENCE_S = 5.0
"""The same for images that nobody has open; some programs close and open them again."""

_FIRST_WINDOW_BYTES = 64 * MIB
"""The longest, until requests have told what the store can do."""

_LEAST_WINDOW_BYTES = 8 * MIB
_NEWS_S = 0.06
"""What the lane has answered is known here so much later, at most; a window covers that, too."""

_MOST_IMAGES = 1024

_HOLD_S = 0.25
"""The longest that arms wait for what is known of an image's start: a few round trips to a store.
What they would fetch in that time is most often not what the start needs, and in its way."""

_LED_FLOOR = 0.9
"""Beside a replay that leads, others need to be so certain: of what a known start has not read
before, most is not read this time either, however its reads look."""


class Prefetcher:
    """Fetches ahead for one mount.

    `table_of` knows the tables of images that are open; `digest` brings what the lane has answered
    since the last time. `wake` is for whoever sees a reader wait.
    """

    def __init__(
        self,
        settings: PrefetchSection,
        l1: L1,
        metrics: Metrics,
        jobs: AheadJobs,
        limits: Limits,
        table_of: Callable[[int], ManifestTable | None],
        digest: Callable[[], object],
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self.jobs = jobs
        self.limits = limits
        self._table_of = table_of
        self._digest = digest
        share_bytes = int(settings.l1_share * l1.quota_bytes)
        self.sequential = Sequential(min(settings.window_bytes, _FIRST_WINDOW_BYTES))
        self.books = Books(min(settings.most_bytes, share_bytes), metrics, self.sequential)
        self.budget, self.ledger = self.books.budget, self.books.ledger
        self.arms: list[Arm] = []
        self._replay: Replay | None = None
        self.add_arm(self.sequential)
        self.images: dict[int, OpenImage] = {}
        self.on_opened: Callable[[OpenImage], None] = _ignore
        self.on_forgotten: Callable[[OpenImage], None] = _ignore
        """Called before the arms forget what they know of an image."""
        self._condenser = Condenser()
        self._cpu_share = CpuShare()
        self._wake = trio.Event()
        self._has_missed = trio.Event()
        l1.on_used = self.books.used
        l1.on_dropped = self.books.dropped
        jobs.on_answered = self._answered

    def add_arm(self, arm: Arm) -> None:
        """Let another predictor wish; for images that are opened from now on."""
        self.arms.append(arm)
        self.books.add_arm(arm)
        if isinstance(arm, Replay):
            self._replay = arm

    @property
    def misses(self) -> int:
        """Chunks that readers had to fetch themselves."""
        return self._metrics.miss_chunks - self._metrics.ahead_late

    def wake(self, *, is_miss: bool = True) -> None:
        """A reader waits: look soon at what it read, and sooner if nobody had foreseen it."""
        self._wake.set()
        if is_miss:
            self._has_missed.set()

    async def run(self) -> None:
        """Fetch ahead until cancelled."""
        looked_s = trio.current_time()
        while True:
            with trio.move_on_after(_LOOK_S):
                await self._wake.wait()
            self._wake = trio.Event()
            self._has_missed = trio.Event()
            self._digest()
            self.start_jobs()
            now_s = trio.current_time()
            if now_s - looked_s >= _LOOK_S:
                looked_s = now_s
                self._look(now_s)
            await trio.sleep(_REST_S)
            with trio.move_on_after(_CALM_REST_S):
                await self._has_missed.wait()

    # ---- what guests do ----

    def opened(self, inode: int, table: ManifestTable) -> None:
        """An image was opened."""
        image = self._image(inode, table)
        image.handles += 1
        image.closed_s = None
        if image.plan:
            self._wake.set()

    def closed(self, inode: int) -> None:
        """A handle of an image was closed; with the last one its plan rests, and soon it ends.

        Many a start opens and closes its image before it opens it for good.
        """
        image = self.images.get(inode)
        if image is None:
            return
        self._digest()  # what was read before, or it would look as if it came after
        image.handles -= 1
        if image.handles <= 0:
            image.closed_s = trio.current_time()

    def observe(self, records: npt.NDArray[np.void]) -> None:
        """Take a batch of accesses from the lane, (n,) ACCESS_DTYPE."""
        begun_s = time.thread_time()
        arms = self._arms_to_tell()
        for span in self._condenser.spans(records, self._metrics.miss_chunks):
            image = self.images.get(span.inode)
            if image is None:
                table = self._table_of(span.inode)
                if table is None:
                    continue
                image = self._image(span.inode, table)  # opened under an earlier daemon
            image.closed_s = None
            access = access_of(span, image.table.size_bytes, image.chunk_bytes)
            if access is not None:
                image.plan.read(access.first, access.count)
                if not access.is_hit:
                    image.venture.earn(access.count * image.chunk_bytes)
                for arm in arms:
                    self.plan(image, arm.name, arm.observe(image, access))
        self._remember(records)
        self._cpu_share.spend(time.thread_time() - begun_s)
        self.start_jobs()

    def _arms_to_tell(self) -> list[Arm]:
        """Return all arms, or without a share of the processor only what records starts."""
        if self._cpu_share.is_left(trio.current_time()):
            return self.arms
        self._metrics.ahead_unseen += 1
        return [self._replay] if self._replay is not None else []

    def _remember(self, records: npt.NDArray[np.void]) -> None:
        """Let each image remember what was touched last."""
        for inode, reads in _by_inode(records):
            image = self.images.get(inode)
            if image is not None:
                mine = reads[reads["length"] > 0]
                begin = mine["offset"].astype(np.int64)
                first = begin // image.chunk_bytes
                last = (begin + mine["length"] - 1) // image.chunk_bytes
                image.recent.touch(first, last - first + 1, mine["at_ns"] / 1e9)

    def plan(self, image: OpenImage, arm: str, wishes: Sequence[Wish]) -> None:
        """Plan what an arm wishes for."""
        if not wishes:
            return
        now_s = trio.current_time()
        is_led = arm != Replay.name and self._replay is not None and self._replay.leads(image)
        for wish in wishes:
            if is_led and wish.count and wish.confidence < _LED_FLOOR:
                continue
            first = max(0, wish.first)
            count = min(wish.first + wish.count, image.chunks) - first
            if count > 0 or not wish.count:
                image.plan.add(arm, wish._replace(first=first, count=max(0, count)), now_s)

    def hold(self, image: OpenImage) -> None:
        """Fetch nothing of an image for a moment: what is known of its start is looked for."""
        image.held_until_s = trio.current_time() + _HOLD_S

    def release(self, image: OpenImage) -> None:
        """What was known of an image is planned, or nothing is known: fetch what is planned."""
        image.held_until_s = 0.0
        if self._replay is not None and self._replay.leads(image):
            image.plan.keep_only(Replay.name)
        self.start_jobs()

    def _image(self, inode: int, table: ManifestTable) -> OpenImage:
        image = self.images.get(inode)
        if image is None:
            image = self.images[inode] = OpenImage(inode, table)
            if len(self.images) > _MOST_IMAGES:
                self._forget(next(iter(self.images.values())))
            for arm in self.arms:  # on the lane's clock, which is not trio's
                self.plan(image, arm.name, arm.opened(image, time.monotonic()))
            self.on_opened(image)
        image.table = table
        return image

    def _forget(self, image: OpenImage) -> None:
        del self.images[image.inode]
        self.books.judge(self.ledger.slots_of(image), End.WASTED)
        self.on_forgotten(image)
        for arm in self.arms:
            arm.closed(image, time.monotonic())

    # ---- jobs ----

    def start_jobs(self) -> None:
        """Start what there are places for; what is held up is tried again in the next turn."""
        while any(image.plan for image in self.images.values()):
            now_s = trio.current_time()
            wait_s = self.jobs.wait_s(now_s)
            if wait_s is None:
                return
            if wait_s > 0:  # the pace is to be kept
                self._wake.set()
                return
            batch = self._next_batch(now_s)
            if batch is None:
                return
            if batch.refs:
                taken_bytes = self.jobs.start(batch, self.books.ended)
                self.books.took(batch.image, batch.arm, taken_bytes)

    def _next_batch(self, now_s: float) -> Batch | None:
        """Gather the chunks of one more job; None if nothing is planned, or there is no room."""
        best = None
        for image in self.images.values():
            if not image.plan or image.rests(now_s):
                continue
            rooms = {arm.name: self.books.room_bytes(image, arm.name) for arm in self.arms}
            allowed = {arm for arm, room in rooms.items() if room >= image.chunk_bytes}
            piece = image.plan.first(now_s, allowed)
            if piece and (best is None or piece < best[1]):
                best = image, piece, rooms[piece.arm]
        if best is None:
            return None
        image, piece, room_bytes = best
        slots = self.jobs.spare_slots(image)
        if not slots:  # L1 has none to spare
            self._wake.set()
            return None
        try:
            limits = self.limits.within(room_bytes, slots)
            return gather(image, image.plan, piece.arm, now_s, limits, self.jobs)
        except CachefsError as error:  # its table is damaged: a read will say, and mend it
            logger.debug("nothing is fetched ahead: %s", error)
            image.plan.clear()
            return Batch(image, piece.arm)

    def _answered(self) -> None:
        self._bound_windows()
        self.start_jobs()

    def _look(self, now_s: float) -> None:
        """What is to be done once a second."""
        self.books.judge(self.ledger.older_than(now_s - _PATIENCE_S), End.WASTED)
        for image in list(self.images.values()):
            if image.closed_s is not None and image.closed_s < now_s - _CLOSED_PATIENCE_S:
                self._forget(image)
        self.jobs.look(now_s)

    def _bound_windows(self) -> None:
        """The furthest that is worth running ahead: what the tier brings until news of it comes."""
        speed = self.jobs.pace.speed_bytes_s * self.jobs.pace.limit
        needed_bytes = int(2 * speed * (self.jobs.pace.latency_s + _NEWS_S))
        self.sequential.ceiling_bytes = min(
            self._settings.window_bytes,
            max(_LEAST_WINDOW_BYTES, needed_bytes),
        )


def _ignore(_: OpenImage) -> None:
    pass


def access_of(span: Span, image_bytes: int, chunk_bytes: int) -> Access | None:
    """Return a span as the arms see it, None if it lies outside of the image."""
    end = min(span.offset + span.size_bytes, image_bytes)
    if end <= span.offset:
        return None
    first = span.offset // chunk_bytes
    count = (end - 1) // chunk_bytes - first + 1
    return Access(
        span.time_s,
        span.reader,
        first,
        count,
        span.is_hit,
        span.offset,
        end - span.offset,
        span.reads,
        span.is_backward,
    )


def _by_inode(records: npt.NDArray[np.void]) -> list[tuple[int, npt.NDArray[np.void]]]:
    """Return the records of each inode; most often there is one."""
    inodes = records["inode"]
    if not len(records) or (inodes == inodes[0]).all():
        return [(int(inodes[0]), records)] if len(records) else []
    return [(inode, records[inodes == inode]) for inode in np.unique(inodes).tolist()]
