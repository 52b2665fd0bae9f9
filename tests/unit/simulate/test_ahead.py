from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from cachefs.policy.evict.names import make_policy
from cachefs.policy.evict.order import Ticks
from cachefs.policy.prefetch.seam import Access, Image, Wish
from cachefs.simulate.ahead import Link, Recorded, Replay, runs_of, unlike_keys
from cachefs.simulate.plain import NextChunk, PlainSequential

CHUNK = 1_000_000


class Told(NextChunk):
    """Wishes for what it was told to."""

    name = "told"

    def __init__(self, at_open: Sequence[Wish]) -> None:
        self.at_open = at_open
        self.verdicts: list[tuple[int, bool]] = []

    def opened(self, image: Image, time_s: float) -> Sequence[Wish]:
        return self.at_open

    def observe(self, image: Image, access: Access) -> Sequence[Wish]:
        return ()

    def judged(self, image: Image, chunk: int, was_used: bool) -> None:
        self.verdicts.append((chunk, was_used))


def replay(arms: Sequence[Any], link: Link | None = None, slots: int = 100) -> Replay:
    image = Recorded(CHUNK, unlike_keys(1_000))
    made = Replay(image, slots, make_policy("lru", Ticks()), arms, link)
    made.open()
    return made


def test_what_is_wished_for_is_no_miss() -> None:
    arm = Told([Wish(3, 2, 1.0)])
    made = replay([arm])
    made.read(3, 1)
    made.read(9, 1)
    made.close()
    assert made.result.misses == 1
    tally = made.result.tallies["told"]
    assert (tally.fetched, tally.used, tally.late, tally.accuracy) == (2, 1, 0, 0.5)
    assert arm.verdicts == [(3, True), (4, False)]


def test_chunks_of_one_request_do_not_predict_each_other() -> None:
    made = replay([NextChunk()])
    made.read(10, 8)
    assert made.result.misses == 8
    made.read(18, 1)
    assert made.result.misses == 8


def test_a_miss_waits_as_long_as_the_store_takes() -> None:
    made = replay([], Link(0.03, 100e6, 8))
    made.read(0, 2)
    made.read(0, 1)
    assert made.result.stall_s == pytest.approx(0.03 + 2 * CHUNK / 100e6)
    assert made.now_s == made.result.stall_s
    assert made.result.requests == 1


def test_what_is_on_its_way_is_late() -> None:
    made = replay([Told([Wish(5, 1, 1.0)])], Link(0.03, 100e6, 8))
    made.now_s = 0.0
    made.read(700, 1)  # 40 ms, in which chunk 5 comes as well
    made.read(5, 1)
    assert made.result.tallies["told"].late == 0
    assert made.result.stall_s == pytest.approx(0.04)

    made = replay([Told([Wish(5, 4, 1.0)])], Link(0.03, 100e6, 8))
    made.read(700, 1)  # 40 ms; those four take 70
    made.read(6, 1)
    assert made.result.tallies["told"].late == 1
    assert made.result.stall_s == pytest.approx(0.07)


def test_streams_are_limited_and_demand_adopts_what_waits() -> None:
    wishes = [Wish(first, 1, 1.0) for first in (10, 20, 30)]
    made = replay([Told(wishes)], Link(0.03, 100e6, 1))
    made.read(30, 1)  # it waits behind two others: fetched now, as a miss
    assert made.result.misses == 1
    assert made.result.stall_s == pytest.approx(0.04)
    made.now_s += 1.0
    made.read(10, 1)
    made.read(20, 1)
    assert made.result.misses == 1
    assert made.result.tallies["told"].fetched == 2


def test_a_chunk_that_is_evicted_unused_is_judged() -> None:
    arm = Told([Wish(500, 1, 1.0)])
    made = replay([arm], slots=4)
    for chunk in range(8):
        made.read(chunk, 1)
    assert arm.verdicts == [(500, False)]


def test_plain_sequential_needs_two_in_a_row() -> None:
    made = replay([PlainSequential()])
    for chunk in range(100, 200):
        made.read(chunk, 1)
    assert made.result.misses == 2
    for chunk in np.random.default_rng(1).permutation(90).tolist():
        made.read(int(chunk) * 3 + 300, 1)
    assert made.result.misses == 92


def test_runs() -> None:
    assert runs_of([1, 2, 3, 7, 9, 10], 2) == [(1, 2), (3, 1), (7, 1), (9, 2)]


def test_contents_are_found_where_they_lie() -> None:
    keys = unlike_keys(50)
    keys[7] = 0
    image = Recorded(CHUNK, keys)
    places = image.find(np.array([keys[3], 0, 12345, keys[49]], np.uint64))
    assert places.tolist() == [3, -1, -1, 49]
