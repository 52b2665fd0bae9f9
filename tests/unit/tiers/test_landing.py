"""Verified chunks on their way into slots: runs, gaps, short writes, bad places."""

import errno
import itertools
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cachefs.tiers import landing as landing_module
from cachefs.tiers.jobs import Wanted
from cachefs.tiers.landing import Landing, Plain, SlotWriter

SLOT = 4096

Write = Callable[[int, Sequence[memoryview], int], int]


class Told:
    """What a landing tells of its chunks, and the writes that it makes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.members: dict[int, str | None] = {}
        self.writes: list[tuple[int, int]] = []
        self.real: Write = os.pwritev
        self.write: Write = self.real

        def pwritev(fd: int, parts: Sequence[memoryview], position: int) -> int:
            self.writes.append((position, sum(map(len, parts))))
            return self.write(fd, parts, position)

        monkeypatch.setattr(os, "pwritev", pwritev)

    def __call__(self, member: int, plain: Plain, error: OSError | None) -> None:
        assert member not in self.members
        assert bytes(plain) == content(member, len(plain))
        self.members[member] = None if error is None else str(error.strerror)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    return Told(monkeypatch)


@pytest.fixture
def landing(told: Told) -> Landing:
    return Landing(SlotWriter(), told)


@pytest.fixture
def segment(tmp_path: Path) -> Path:
    path = tmp_path / "segment"
    path.write_bytes(b"")
    return path


def content(member: int, size_bytes: int = SLOT) -> bytes:
    return bytes([member + 1]) * size_bytes


def wanted(segment: Path, slot: int) -> Wanted:
    return Wanted(b"", SLOT, b"", 0, 0, str(segment), slot * SLOT)


def land(landing: Landing, segment: Path, slots: Sequence[int], last_bytes: int = SLOT) -> None:
    for member, slot in enumerate(slots):
        size_bytes = last_bytes if member == len(slots) - 1 else SLOT
        landing.add(member, wanted(segment, slot), content(member, size_bytes))
    landing.flush()


def test_neighbours_are_one_write(landing: Landing, told: Told, segment: Path) -> None:
    land(landing, segment, [3, 4, 5], last_bytes=100)
    assert told.writes == [(3 * SLOT, 2 * SLOT + 100)]
    assert told.members == {0: None, 1: None, 2: None}
    assert segment.read_bytes() == bytes(3 * SLOT) + content(0) + content(1) + content(2, 100)


@pytest.mark.parametrize("slots", [[0, 2, 4], [2, 1, 0], [0, 1, 3], [5, 5, 6]])
def test_what_lies_apart_is_written_apart(
    landing: Landing, told: Told, segment: Path, slots: list[int]
) -> None:
    land(landing, segment, slots)
    assert told.members == dict.fromkeys(range(3))
    assert len(told.writes) == 1 + sum(
        later != slot + 1 for slot, later in itertools.pairwise(slots)
    )
    expected = bytearray((max(slots) + 1) * SLOT)
    for member, slot in enumerate(slots):
        expected[slot * SLOT : (slot + 1) * SLOT] = content(member)
    assert segment.read_bytes() == expected


def test_other_segments_are_other_writes(landing: Landing, told: Told, segment: Path) -> None:
    other = segment.with_name("other")
    other.write_bytes(b"")
    landing.add(0, wanted(segment, 0), content(0))
    landing.add(1, wanted(other, 1), content(1))
    landing.flush()
    assert segment.read_bytes() == content(0)
    assert other.read_bytes() == bytes(SLOT) + content(1)
    assert told.members == {0: None, 1: None}


def test_a_run_is_bounded(
    landing: Landing, told: Told, segment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(landing_module, "MOST_RUN_BYTES", 3 * SLOT)
    land(landing, segment, range(7))
    assert told.writes == [(0, 3 * SLOT), (3 * SLOT, 3 * SLOT), (6 * SLOT, SLOT)]


def test_nothing_is_told_before_it_is_written(landing: Landing, told: Told, segment: Path) -> None:
    landing.add(0, wanted(segment, 0), content(0))
    assert not told.members
    assert not segment.read_bytes()
    landing.flush()
    landing.flush()  # and only once
    assert told.members == {0: None}


@pytest.mark.parametrize("step_bytes", [1, SLOT - 1, SLOT, SLOT + 1, 2 * SLOT])
def test_short_writes_are_completed(
    landing: Landing, told: Told, segment: Path, step_bytes: int
) -> None:
    def short(fd: int, parts: Sequence[memoryview], position: int) -> int:
        return os.pwrite(fd, b"".join(parts)[:step_bytes], position)

    told.write = short
    land(landing, segment, [0, 1, 2])
    assert segment.read_bytes() == content(0) + content(1) + content(2)
    assert told.members == {0: None, 1: None, 2: None}


def test_a_bad_place_does_not_take_the_neighbours_along(
    landing: Landing, told: Told, segment: Path
) -> None:
    def one_bad(fd: int, parts: Sequence[memoryview], position: int) -> int:
        if position <= SLOT < position + sum(map(len, parts)):
            raise OSError(errno.EIO, "bad place")
        return told.real(fd, parts, position)

    told.write = one_bad
    land(landing, segment, [0, 1, 2])
    assert told.members == {0: None, 1: "bad place", 2: None}
    assert segment.read_bytes() == content(0) + bytes(SLOT) + content(2)


def test_a_disk_that_takes_no_more_is_an_error_for_each(
    landing: Landing, told: Told, segment: Path
) -> None:
    told.write = lambda fd, parts, position: 0
    land(landing, segment, [0, 1])
    assert told.members == {0: "the disk takes no more", 1: "the disk takes no more"}


def test_a_segment_that_is_gone_is_an_error_for_each(
    landing: Landing, told: Told, segment: Path
) -> None:
    segment.unlink()
    land(landing, segment, [0, 1])
    assert len(told.members) == 2
    assert all(told.members.values())
    assert not segment.exists()


def test_threads_open_a_segment_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    segment = tmp_path / "segment"
    segment.write_bytes(b"")
    real, opened = os.open, list[str]()

    def slow_open(path: str, flags: int) -> int:
        opened.append(path)
        time.sleep(0.05)  # so that the others find it not yet open
        return real(path, flags)

    monkeypatch.setattr(os, "open", slow_open)
    writer = SlotWriter()
    parts = [bytes([number]) * SLOT for number in range(8)]
    with ThreadPoolExecutor(8) as threads:
        for number, part in enumerate(parts):
            threads.submit(writer.write, str(segment), number * SLOT, [part])
    assert segment.read_bytes() == b"".join(parts)
    assert opened == [str(segment)]
