"""Jobs of one fetcher in several threads, as over S3: they ask L2 in turns and share no state."""

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from cachefs.codec.compression import Compression
from cachefs.codec.frame import encode_frame
from cachefs.model.chunk import chunk_id
from cachefs.tiers.breaker import Breaker
from cachefs.tiers.jobs import ChunkJob, ChunksDone, Fetched, L2Report, Outcome, Wanted
from cachefs.tiers.l2.background import Background
from cachefs.tiers.l2.breaker import Guarded
from cachefs.tiers.l2.counts import Counts
from cachefs.tiers.l2.l2 import L2
from tests.unit.tiers.l2.stand_in import StandIn

THREADS, JOBS, CHUNKS = 4, 60, 5
PLAIN = [os.urandom(500) for _ in range(JOBS * CHUNKS)]
IDS = [chunk_id(plain) for plain in PLAIN]
FRAMES = [encode_frame(plain) for plain in PLAIN]
NUMBERS = {identity: number for number, identity in enumerate(IDS)}
WAIT_S = 20.0


class OneAtATime(StandIn):
    """Takes note of whether two asked at once; a call takes a while, as over a network."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = self.most = 0
        self.lock = threading.Lock()

    def get(self, ids: Sequence[bytes], wait_s: float) -> list[bytes | None]:
        with self.lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        time.sleep(0.001)
        found = super().get(ids, wait_s)
        with self.lock:
            self.inside -= 1
        return found


class Kept(Background):
    """A background that keeps what it is given."""

    def start(self) -> None:
        self.kept: list[tuple[bytes, bytes]] = []

    def add(self, frames: Sequence[tuple[bytes, memoryview, int]]) -> None:
        self.kept += [(identity, bytes(frame)) for identity, frame, _ in frames]


def l2_over(tier: StandIn, wait_s: float) -> tuple[L2, Kept]:
    made: list[Kept] = []

    def make(counts: Counts, report: Callable[[], None]) -> Background:
        guarded = Guarded(tier, Breaker(3, 1, 1))
        encode = Compression().encode
        made.append(Kept(guarded, guarded, 1 << 20, 1, encode, False, counts, report))
        return made[0]

    l2 = L2(tier, Breaker(3, 1, 1), wait_s, make)
    l2.start()
    return l2, made[0]


def land(one: Wanted, frame: memoryview) -> Fetched:
    assert bytes(frame) == FRAMES[NUMBERS[one.chunk_id]]
    return Fetched(Outcome.UNKEPT, PLAIN[NUMBERS[one.chunk_id]])


def job_of(number: int) -> ChunkJob:
    mine = range(number * CHUNKS, (number + 1) * CHUNKS)
    wanted = (Wanted(IDS[n], len(PLAIN[n]), b"pack", n, 1, "", 0) for n in mine)
    return ChunkJob(number, tuple(wanted))


def test_jobs_beside_each_other_keep_apart_what_they_offer() -> None:
    tier = OneAtATime()
    tier.frames = {IDS[n]: FRAMES[n] for n in range(0, len(IDS), 3)}
    l2, background = l2_over(tier, WAIT_S)
    reports: list[L2Report] = []
    l2.send = reports.append
    most = [0]

    def from_store(job: ChunkJob) -> ChunksDone:
        for one in job.wanted:
            l2.offer(one, memoryview(FRAMES[NUMBERS[one.chunk_id]]))
            time.sleep(0.0005)
        plain = [PLAIN[NUMBERS[one.chunk_id]] for one in job.wanted]
        fetched = tuple(Fetched(Outcome.UNKEPT, one) for one in plain)
        return ChunksDone(job.number, fetched, 1, len(plain))

    def do(number: int) -> ChunksDone:
        done = l2.fetch(job_of(number), land, from_store)
        most[0] = max(most[0], threading.active_count())
        l2.after_answer()
        return done

    with ThreadPoolExecutor(THREADS) as threads:
        answers = list(threads.map(do, range(JOBS)))
    assert most[0] > THREADS  # they did run beside each other
    assert tier.most == 1
    for number, done in enumerate(answers):
        mine = range(number * CHUNKS, (number + 1) * CHUNKS)
        assert [one.plain for one in done.fetched] == [PLAIN[n] for n in mine]
        assert [one.from_l2 for one in done.fetched] == [n % 3 == 0 for n in mine]
    missed = [n for n in range(len(IDS)) if n % 3]
    assert sorted(background.kept) == sorted((IDS[n], FRAMES[n]) for n in missed)
    assert sum(report.counts.get("l2_misses", 0) for report in reports) == len(missed)
    assert sum(report.counts.get("l2_errors", 0) for report in reports) == 0


def test_whose_turn_does_not_come_in_time_asks_the_store() -> None:
    """A hung L2 holds who asks it; the others leave, which is no failure of L2's."""
    tier = StandIn()
    tier.delay_s = lambda number: WAIT_S if number == 0 else 0.0
    l2, _ = l2_over(tier, 0.05)
    reports: list[L2Report] = []
    l2.send = reports.append

    def from_store(job: ChunkJob) -> ChunksDone:
        fetched = tuple(Fetched(Outcome.UNKEPT, b"stored") for _ in job.wanted)
        return ChunksDone(job.number, fetched, 1, 1)

    with ThreadPoolExecutor(THREADS) as threads:
        first = threads.submit(l2.fetch, job_of(0), land, from_store)
        while not tier.calls:
            time.sleep(0.001)
        begin_s = time.monotonic()
        others = [threads.submit(l2.fetch, job_of(n), land, from_store) for n in range(1, THREADS)]
        for other in others:
            assert {one.plain for one in other.result().fetched} == {b"stored"}
        assert time.monotonic() - begin_s < WAIT_S / 4
        assert not first.done()
        tier.released.set()
        first.result()
    assert tier.calls == 1
    counted = [report.counts for report in reports]
    assert sum(counts.get("l2_bypassed", 0) for counts in counted) == (THREADS - 1) * CHUNKS
    assert sum(counts.get("l2_errors", 0) for counts in counted) == 0
