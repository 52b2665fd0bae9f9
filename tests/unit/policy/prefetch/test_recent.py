"""What was touched lately."""

from __future__ import annotations

import numpy as np

from cachefs.policy.prefetch.known import places_of
from cachefs.policy.prefetch.recent import Recent
from tests.unit.policy.prefetch.images import Bare


def touched(*accesses: tuple[int, int, int]) -> Recent:
    recent = Recent(1000)
    whole = np.array(accesses, np.int64).reshape(-1, 3)
    for part in (whole[:2], whole[2:]):
        recent.touch(part[:, 1], part[:, 2], part[:, 0].astype(np.float64))
    return recent


def test_the_newest_come_first_and_the_old_not_at_all() -> None:
    recent = touched((100, 5, 1), (200, 700, 2), (250, 3, 1), (260, 5, 1))
    assert recent.chunks(300, 150).tolist() == [5, 3, 700, 701]
    assert recent.chunks(300, 60).tolist() == [5, 3]
    assert recent.chunks(300, 10).tolist() == []
    assert touched().chunks(300, 150).tolist() == []


def test_times_that_go_back_and_reads_past_the_end_do_no_harm() -> None:
    recent = touched((100, 5, 1), (99, 6, 1), (100, 990, 50))
    assert recent.chunks(100, 10).tolist() == [5, 6, *range(990, 1000)]


def test_a_day_of_touching_is_told_apart_to_the_second() -> None:
    recent = touched((0, 1, 1), (86_400, 2, 1), (86_401, 3, 1))
    assert recent.chunks(86_401, 0.5).tolist() == [3]


def test_as_a_profile_it_lays_out_what_was_newest_first_and_merged() -> None:
    image = Bare(1000)
    order = [*range(40, 60), 7, 500, *range(900, 930)]
    recent = touched(*((100 + at, chunk, 1) for at, chunk in enumerate(order)))
    rows = recent.rows(image, 200, 600)
    assert len(rows) == len(order)
    places = places_of(rows, image)
    assert {chunk for first, count in places for chunk in range(first, first + count)} == set(order)
    assert places[0][0] >= 900  # the first stage is the last 16 chunks
    assert len(places) < len(order) / 4
    assert np.all(rows["which"] == 1)


def test_many_accesses_at_once_are_the_same_as_one_by_one() -> None:
    rng = np.random.default_rng(7)
    first, count = rng.integers(0, 1000, 60), rng.integers(1, 20, 60)
    time_s = np.arange(60, dtype=np.float64)
    together, apart = Recent(1000), Recent(1000)
    together.touch(first, count, time_s)
    for at in range(60):
        apart.touch(first[at : at + 1], count[at : at + 1], time_s[at : at + 1])
    assert together.chunks(60, 100).tolist() == apart.chunks(60, 100).tolist()
    assert together.chunks(60, 10).tolist() == apart.chunks(60, 10).tolist()
