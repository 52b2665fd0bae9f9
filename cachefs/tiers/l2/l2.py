"""L2 as a fetcher uses it: ask for a whole batch, then the store for the rest, then write behind.

What L2 answers is landed like a frame from the store: decoded within bounds and compared with its
id. What fails that is missing, is fetched from the store, and is written over.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from cachefs.errors import TierError
from cachefs.tiers.breaker import Breaker, State
from cachefs.tiers.jobs import ChunkJob, ChunksDone, Fetched, L2Report, Leaving, Outcome, Wanted
from cachefs.tiers.l2.background import NO_FRAME, Background
from cachefs.tiers.l2.bounded import Hedged
from cachefs.tiers.l2.breaker import BypassedError
from cachefs.tiers.l2.counts import READING, Counts
from cachefs.tiers.l2.seam import FrameTier
from cachefs.units import MIB

logger = logging.getLogger(__name__)

Land = Callable[[Wanted, memoryview], Fetched]
FetchFromStore = Callable[[ChunkJob], ChunksDone]

_MOST_VALUE_BYTES = MIB
"""Of what is no frame: more might not come within the time that a reader waits for L2."""

_LANDED = (Outcome.KEPT, Outcome.UNKEPT)


class _JobState(threading.local):
    """What belongs to the job that this thread does."""

    def __init__(self) -> None:
        self.offered: dict[bytes, tuple[memoryview, int]] = {}
        self.behind: list[tuple[bytes, memoryview, int]] = []


class L2:
    """One fetcher's way to L2.

    Concurrency: any thread that does one job after another, from `fetch` to `after_answer`. They
    ask L2 in turns: beside each other they would use up the tier's requests, whose lack counts as
    a failure, and a call that is given up takes those under way along (`interrupt`).
    """

    def __init__(
        self,
        tier: FrameTier,
        breaker: Breaker,
        wait_s: float,
        make_background: Callable[[Counts, Callable[[], None]], Background],
        hedged: Hedged | None = None,
    ) -> None:
        self._tier = tier
        self._breaker = breaker
        self._wait_s = wait_s
        self._hedged = hedged
        self._counts = Counts()
        self._background = make_background(self._counts, self.report)
        self._asking = threading.Lock()
        self._reporting = threading.Lock()
        self._job = _JobState()
        self.send: Callable[[L2Report], None] = lambda _: None
        """Where reports go, from any thread."""
        breaker.on_change = self._background.wake

    def start(self) -> None:
        """Connect, and begin to work in the background."""
        self._background.start()

    def fetch(self, job: ChunkJob, land: Land, fetch_from_store: FetchFromStore) -> ChunksDone:
        """Return the answer to a job: from here what is here and right, from the store the rest."""
        self._job.offered.clear()
        fetched: list[Fetched | None] = [None] * len(job.wanted)
        corrupt: set[bytes] = set()
        for index, frame in enumerate(self._frames([w.chunk_id for w in job.wanted])):
            if frame is None:
                continue
            wanted = job.wanted[index]
            landed = land(wanted, memoryview(frame))
            if landed.outcome in _LANDED:
                fetched[index] = landed._replace(from_l2=True)
            else:
                corrupt.add(wanted.chunk_id)
        self._counts.add("l2_corrupt", len(corrupt))
        rest = [index for index, result in enumerate(fetched) if result is None]
        requests = frame_bytes = bypassed = 0
        if rest:
            done = fetch_from_store(ChunkJob(job.number, tuple(job.wanted[i] for i in rest)))
            requests, frame_bytes, bypassed = done.requests, done.frame_bytes, done.bypassed
            for index, result in zip(rest, done.fetched, strict=True):
                fetched[index] = result
                if result.outcome in _LANDED:
                    self._choose(
                        job.wanted[index], is_replaced=job.wanted[index].chunk_id in corrupt
                    )
        self._job.offered.clear()
        self.report()
        answers = tuple(result for result in fetched if result is not None)
        return ChunksDone(job.number, answers, requests, frame_bytes, bypassed)

    def offer(self, wanted: Wanted, frame: memoryview) -> None:
        """Take note of a frame that came from the store for the job that this thread does."""
        self._job.offered[wanted.chunk_id] = (frame, wanted.plain_bytes)

    def after_answer(self) -> None:
        """Queue what this thread's last job brought; the answer has been sent."""
        if self._job.behind:
            self._background.add(self._job.behind)
            self._job.behind = []

    def value(self, key: bytes) -> bytes | None:
        """Return what is kept under a key that is no chunk's, None if nothing is or L2 fails."""
        if not self._asking.acquire(timeout=self._wait_s):
            return None
        try:
            return self._tier.get([key], self._wait_s)[0]
        except TierError as error:
            logger.debug("L2 does not say: %s", error)
            return None
        finally:
            self._asking.release()

    def keep_value(self, key: bytes, value: bytes) -> None:
        """Keep something that is no frame, some time soon; it may be lost, and is if it is long."""
        if len(value) <= _MOST_VALUE_BYTES:
            self._background.add([(key, memoryview(value), NO_FRAME)])

    def demote(self, leaving: Sequence[Leaving]) -> None:
        """See to it that L2 has these chunks, some time soon."""
        self._background.demote(leaving)

    def report(self) -> None:
        """Tell the daemon what is new, if anything."""
        with self._reporting:  # else an older state could be sent after a newer one, and stay
            is_bypassed = self._breaker.state is not State.CLOSED
            report = self._counts.report(self._background.queued_bytes, is_bypassed=is_bypassed)
            if report is not None:
                self.send(report)

    def _frames(self, ids: Sequence[bytes]) -> Sequence[bytes | None]:
        """Ask in turn. A turn that does not come in time is none: others wait for L2 already."""
        unknown: list[bytes | None] = [None] * len(ids)
        if not self._asking.acquire(timeout=self._wait_s):
            self._counts.add("l2_bypassed", len(ids))
            return unknown
        try:
            return self._asked(ids) or unknown
        finally:
            self._asking.release()

    def _asked(self, ids: Sequence[bytes]) -> Sequence[bytes | None] | None:
        hedges = self._hedged.hedges if self._hedged else 0
        try:
            frames = self._tier.get(ids, self._wait_s)
        except BypassedError:
            self._counts.add("l2_bypassed", len(ids))
            return None
        except TierError as error:
            self._counts.failed(READING, error)
            return None
        finally:
            if self._hedged:
                self._counts.add("l2_hedges", self._hedged.hedges - hedges)
        self._counts.went_well(READING)
        self._counts.add("l2_misses", sum(frame is None for frame in frames))
        return frames

    def _choose(self, wanted: Wanted, *, is_replaced: bool) -> None:
        """Keep a landed frame for the back-fill, unless it came by in a scan."""
        offered = self._job.offered.get(wanted.chunk_id)
        if offered is None:
            return
        if wanted.is_scan and not is_replaced:
            self._counts.add("l2_scan_chunks")
        else:
            self._job.behind.append((wanted.chunk_id, *offered))
