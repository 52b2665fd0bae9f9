import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cachefs.codec.compression import Compression
from cachefs.codec.frame import decode_frame, encode_frame
from cachefs.model.chunk import chunk_id
from cachefs.tiers.breaker import Breaker, State
from cachefs.tiers.jobs import ChunkJob, ChunksDone, Fetched, L2Report, Leaving, Outcome, Wanted
from cachefs.tiers.l2.background import Background, read_slot
from cachefs.tiers.l2.breaker import CircuitBreaker, Guarded
from cachefs.tiers.l2.counts import READING, WRITING, Counts
from cachefs.tiers.l2.l2 import L2
from tests.unit.tiers.l2.stand_in import StandIn, wait_until

PLAIN = [bytes([n]) * 3000 + os.urandom(1000) for n in range(1, 9)]
IDS = [chunk_id(plain) for plain in PLAIN]
FRAMES = [encode_frame(plain) for plain in PLAIN]


class Rig:
    """A background over tiers in memory."""

    def __init__(self, queue_bytes: int = 1 << 20, compression: Compression | None = None) -> None:
        self.reading, self.writing = StandIn(), StandIn()
        self.breaker = Breaker(1, 0.01, 0.02)
        self.writing_breaker = Breaker(3, 0.01, 0.02)
        self.counts = Counts()
        self.reports: list[L2Report] = []
        self.background = Background(
            Guarded(CircuitBreaker(self.reading, self.breaker, calls_probe=False), self.breaker),
            Guarded(
                CircuitBreaker(self.writing, self.writing_breaker, calls_probe=True),
                self.writing_breaker,
            ),
            queue_bytes,
            0.1,
            (compression or Compression()).encode,
            compression is not None,
            self.counts,
            self.report,
        )
        self.breaker.on_change = self.background.wake

    def report(self) -> None:
        report = self.counts.report(self.background.queued_bytes, is_bypassed=False)
        if report is not None:
            self.reports.append(report)

    def add(self, *numbers: int) -> None:
        self.background.add([(IDS[n], memoryview(FRAMES[n]), len(PLAIN[n])) for n in numbers])

    def total(self, name: str) -> int:
        return sum(report.counts.get(name, 0) for report in self.reports)


def test_frames_are_written_and_the_queue_is_empty_at_the_end() -> None:
    rig = Rig()
    rig.background.start()
    rig.add(0, 1, 2)
    wait_until(lambda: rig.total("l2_backfilled") == 3)
    assert rig.writing.frames == dict(zip(IDS[:3], FRAMES[:3], strict=True))
    assert rig.reading.frames == {}
    wait_until(lambda: rig.reports[-1].queued_bytes == 0)


def test_what_does_not_fit_is_dropped_and_not_waited_for() -> None:
    rig = Rig(queue_bytes=2 * len(FRAMES[0]) + 10)
    rig.writing.delay_s = lambda _: 20.0
    rig.background.start()
    rig.add(*range(8))
    assert rig.background.queued_bytes <= 2 * len(FRAMES[0]) + 10
    rig.writing.released.set()
    wait_until(lambda: rig.total("l2_backfilled") == 2)
    assert rig.total("l2_backfill_dropped") == 6
    rig.add(5)
    wait_until(lambda: IDS[5] in rig.writing.frames)


def test_nothing_is_queued_with_no_queue() -> None:
    rig = Rig(queue_bytes=0)
    rig.background.start()
    rig.add(0)
    assert rig.background.queued_bytes == 0


def test_a_tier_that_refuses_loses_frames_and_is_used_again() -> None:
    rig = Rig()
    rig.writing.fail = lambda number: number < 4
    rig.background.start()
    for _ in range(20):
        rig.add(0)
        wait_until(lambda: rig.background.queued_bytes == 0)
        if IDS[0] in rig.writing.frames:
            break
        threading.Event().wait(0.01)
    assert IDS[0] in rig.writing.frames
    wait_until(lambda: rig.reports[-1].error == "")
    assert rig.total("l2_errors") == 4
    assert rig.total("l2_backfill_dropped") >= 4


def test_frames_can_have_another_codec_there() -> None:
    rig = Rig(compression=Compression("none"))
    rig.background.start()
    rig.add(0)
    wait_until(lambda: IDS[0] in rig.writing.frames)
    assert rig.writing.frames[IDS[0]][0] == 0
    assert bytes(decode_frame(rig.writing.frames[IDS[0]], len(PLAIN[0]))) == PLAIN[0]


def test_an_open_breaker_is_probed_without_anybody_who_reads() -> None:
    rig = Rig()
    rig.reading.fail = lambda number: number < 5
    rig.background.start()
    wait_until(lambda: rig.reading.calls > 5)
    wait_until(lambda: rig.reports[-1].error == "")
    assert rig.breaker.probe_in_s() is None


def test_when_reads_work_again_writes_are_tried_at_once() -> None:
    """Their own breaker would have waited for a minute."""
    rig = Rig()
    rig.writing_breaker._first_pause_s = rig.writing_breaker._pause_s = 60
    rig.reading.fail = rig.writing.fail = lambda number: number < 3
    for _ in range(3):
        rig.writing_breaker.failed()
    rig.breaker.failed()
    rig.writing.fail = lambda _: False
    rig.background.start()
    wait_until(lambda: rig.breaker.state is State.CLOSED and bool(rig.reports))
    wait_until(lambda: rig.writing_breaker.probe_in_s() == 0)
    rig.add(0)
    wait_until(lambda: IDS[0] in rig.writing.frames)


def test_advice_is_asked_for_once_and_told() -> None:
    rig = Rig()
    rig.reading.text = "set maxmemory"
    rig.reading.fail = lambda number: number == 0
    rig.background.start()
    wait_until(lambda: bool(rig.reports) and rig.reports[-1].advice == "set maxmemory")


def test_it_goes_on_whatever_happens(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig()

    def explode(number: int) -> bool:
        if number == 0:
            raise ZeroDivisionError
        return False

    rig.writing.fail = explode
    rig.background.start()
    rig.add(0)
    wait_until(lambda: rig.background.queued_bytes == 0)
    rig.add(1)
    wait_until(lambda: IDS[1] in rig.writing.frames)
    assert "the background work for L2 failed" in caplog.text


# ---------------------------------------------------------------------------------------- demotion
def slots(path: Path) -> list[Leaving]:
    path.write_bytes(b"".join(plain.ljust(4096, b"\0") for plain in PLAIN))
    return [
        Leaving(identity, len(plain), str(path), n * 4096)
        for n, (identity, plain) in enumerate(zip(IDS, PLAIN, strict=True))
    ]


def test_a_slot_that_has_other_bytes_by_now_is_not_read(tmp_path: Path) -> None:
    leaving = slots(tmp_path / "segment")
    assert read_slot(leaving[3]) == PLAIN[3]
    assert read_slot(leaving[3]._replace(position=0)) is None
    assert read_slot(leaving[3]._replace(position=1 << 30)) is None
    assert read_slot(leaving[3]._replace(segment=str(tmp_path / "gone"))) is None


def test_what_leaves_is_brought_if_it_is_not_there(tmp_path: Path) -> None:
    rig = Rig()
    leaving = slots(tmp_path / "segment")
    leaving[1] = leaving[1]._replace(position=0)  # filled again
    rig.writing.frames[IDS[0]] = b"there already"
    rig.background.start()
    rig.background.demote(leaving)
    wait_until(lambda: rig.total("l2_demoted") == 7)
    assert rig.total("l2_demotions_lost") == 1
    assert rig.writing.frames[IDS[0]] == b"there already"
    assert set(rig.writing.frames) == set(IDS) - {IDS[1]}
    for number in range(2, 8):
        frame = rig.writing.frames[IDS[number]]
        assert bytes(decode_frame(frame, len(PLAIN[number]))) == PLAIN[number]


def test_demotion_has_a_bound(tmp_path: Path) -> None:
    rig = Rig()
    [first, *_] = slots(tmp_path / "segment")
    rig.background.demote([first] * 5000)
    rig.background.start()
    wait_until(lambda: rig.total("l2_demoted") + rig.total("l2_demotions_lost") == 5000)
    # Written once, and found there by all batches after the first.
    assert rig.total("l2_backfilled") == 1
    assert rig.total("l2_demoted") == 1024 - 64 + 1


# ------------------------------------------------------------------------------------------ counts
def test_a_report_has_what_is_new_and_there_is_none_without_news() -> None:
    counts = Counts()
    assert counts.report(0, is_bypassed=False) is not None
    assert counts.report(0, is_bypassed=False) is None
    counts.add("l2_misses", 3)
    counts.add("l2_misses", 2)
    counts.add("l2_corrupt", 0)
    assert counts.report(7, is_bypassed=True) == L2Report({"l2_misses": 5}, 7, True, "", "")
    assert counts.report(7, is_bypassed=True) is None
    assert counts.report(0, is_bypassed=True) == L2Report({}, 0, True, "", "")
    counts.failed(WRITING, ValueError("full"))
    counts.failed(READING, ValueError("away"))
    counts.went_well(READING)
    told = counts.report(0, is_bypassed=True)
    assert told == L2Report({"l2_errors": 2}, 0, True, "full", "")


# --------------------------------------------------------------------------------- a fetcher's jobs
def l2_over(tier: StandIn, add: Callable[[list[bytes]], None]) -> L2:
    class Recording(Background):
        def add(self, frames: object) -> None:
            add([identity for identity, _, _ in frames])  # type: ignore[attr-defined]

    def make(counts: Counts, report: Callable[[], None]) -> Background:
        guarded = Guarded(tier, Breaker(3, 1, 1))
        return Recording(guarded, guarded, 1, 1, Compression().encode, False, counts, report)

    return L2(tier, Breaker(3, 1, 1), 1, make)


def wanted(number: int, *, is_scan: bool = False) -> Wanted:
    return Wanted(IDS[number], len(PLAIN[number]), b"pack", number, 1, "", 0, is_scan)


def land(one: Wanted, frame: memoryview) -> Fetched:
    plain = PLAIN[IDS.index(one.chunk_id)]
    is_right = bytes(frame) == FRAMES[IDS.index(one.chunk_id)]
    return Fetched(Outcome.UNKEPT, plain) if is_right else Fetched(Outcome.CORRUPT)


def test_l2_is_asked_first_the_store_for_the_rest_in_order() -> None:
    tier, added = StandIn(), list[bytes]()
    l2 = l2_over(tier, added.extend)
    reports: list[L2Report] = []
    l2.send = reports.append
    tier.frames = {IDS[1]: FRAMES[1], IDS[2]: b"wrong", IDS[4]: FRAMES[5]}
    asked: list[bytes] = []

    def from_store(job: ChunkJob) -> ChunksDone:
        asked.extend(one.chunk_id for one in job.wanted)
        fetched = []
        for one in job.wanted:
            number = IDS.index(one.chunk_id)
            if number == 3:
                fetched.append(Fetched(Outcome.UNAVAILABLE))
                continue
            l2.offer(one, memoryview(FRAMES[number]))
            fetched.append(Fetched(Outcome.UNKEPT, PLAIN[number]))
        return ChunksDone(job.number, tuple(fetched), 2, 99)

    job = ChunkJob(
        7,
        (
            wanted(0),
            wanted(1),
            wanted(2, is_scan=True),
            wanted(3),
            wanted(4),
            wanted(5, is_scan=True),
        ),
    )
    done = l2.fetch(job, land, from_store)
    assert asked == [IDS[n] for n in (0, 2, 3, 4, 5)]
    assert (done.number, done.requests, done.frame_bytes) == (7, 2, 99)
    assert [f.from_l2 for f in done.fetched] == [False, True, False, False, False, False]
    assert [f.plain for f in done.fetched] == [
        *PLAIN[:3],
        b"",
        *PLAIN[4:6],
    ]
    assert added == []  # behind the answer
    l2.after_answer()
    assert added == [IDS[0], IDS[2], IDS[4]]  # what was wrong is replaced, scan or not
    l2.after_answer()
    assert len(added) == 3
    [report] = reports
    assert report.counts == {"l2_misses": 3, "l2_corrupt": 2, "l2_scan_chunks": 1}


def test_a_tier_that_fails_is_done_without() -> None:
    tier = StandIn()
    tier.fail = lambda _: True
    l2 = l2_over(tier, lambda _: None)
    reports: list[L2Report] = []
    l2.send = reports.append
    store = ChunksDone(7, (Fetched(Outcome.UNKEPT, PLAIN[0]),), 1, 5)
    done = l2.fetch(ChunkJob(7, (wanted(0),)), land, lambda _: store)
    assert done == store
    assert reports[0].counts == {"l2_errors": 1}
    assert reports[0].error == "call 0 fails"
