"""The account of what guesses about runs may lose."""

from __future__ import annotations

import pytest

from cachefs.policy.prefetch.stakes import (
    FLOOR_BYTES,
    MOST_OWED_BYTES,
    MOST_SAVED_BYTES,
    SHARE,
    Stakes,
)
from cachefs.units import KIB, MIB

CHUNK = 64 * KIB
PER_MIB = MIB // CHUNK


def chunks(begin_mib: int, count_mib: int) -> range:
    return range(begin_mib * PER_MIB, (begin_mib + count_mib) * PER_MIB)


def test_what_readers_fetch_earns_a_share_and_hits_earn_nothing() -> None:
    stakes = Stakes(CHUNK)
    stakes.read(32 * PER_MIB, is_hit=False)
    assert stakes.free_bytes == pytest.approx(FLOOR_BYTES + SHARE * 32 * MIB)
    stakes.read(32 * PER_MIB, is_hit=True)
    assert stakes.free_bytes == pytest.approx(FLOOR_BYTES + SHARE * 32 * MIB)
    stakes.read(1_000 * PER_MIB, is_hit=False)
    assert stakes.free_bytes == MOST_SAVED_BYTES


def test_a_guess_is_staked_and_given_back_as_it_is_read_over() -> None:
    stakes = Stakes(CHUNK)
    stakes.goes_on(1, MIB, chunks(1, 1))
    assert stakes.free_bytes == FLOOR_BYTES - MIB * 3 / 4  # a quarter of the run is evident
    assert stakes.window_bytes(1, MIB) == FLOOR_BYTES + MIB / 4  # its own stake is no debt
    assert stakes.window_bytes(2, MIB) == MIB / 2
    stakes.goes_on(1, 2 * MIB, range(0))
    assert stakes.free_bytes == FLOOR_BYTES


def test_a_long_run_needs_no_stake_for_a_quarter_of_it() -> None:
    stakes = Stakes(CHUNK)
    stakes.goes_on(1, 64 * MIB, chunks(64, 16))
    assert stakes.free_bytes == FLOOR_BYTES
    assert stakes.window_bytes(1, 64 * MIB) == 16 * MIB + FLOOR_BYTES


def test_a_run_that_was_left_has_lost_all_that_is_ahead_of_it() -> None:
    stakes = Stakes(CHUNK)
    stakes.goes_on(1, 4 * MIB, chunks(4, 2))
    stakes.read(4 * PER_MIB, is_hit=True)
    assert stakes.window_bytes(2, 4 * MIB) >= MIB  # it may still go on
    stakes.read(1, is_hit=True)
    assert stakes.window_bytes(2, 4 * MIB) == 4 * MIB / 32
    assert stakes.free_bytes == FLOOR_BYTES - 2 * MIB
    assert stakes.window_bytes(3, 4 * KIB) == CHUNK  # the least that keeps a run covered


@pytest.mark.parametrize("by", ["the same run", "another reader"])
def test_what_is_read_after_all_was_not_lost(by: str) -> None:
    stakes = Stakes(CHUNK)
    stakes.goes_on(1, 4 * MIB, chunks(4, 2))
    stakes.read(5 * PER_MIB, is_hit=True)
    stakes.window_bytes(2, MIB)
    assert stakes.free_bytes < 0
    if by == "the same run":
        stakes.goes_on(1, 5 * MIB, chunks(5, 1))
        # What it does not come to stays lost, and so it is no evidence that the run has lasted.
        assert stakes.free_bytes == FLOOR_BYTES - 2 * MIB
    else:
        for chunk in chunks(4, 2):
            stakes.used(chunk)
        assert stakes.free_bytes == pytest.approx(FLOOR_BYTES + SHARE * 2 * MIB)


def test_what_is_owed_has_a_bound() -> None:
    stakes = Stakes(CHUNK)
    for number in range(10):
        stakes.goes_on(number, 64 * MIB, chunks(100 * number, 16))
        stakes.read(65 * PER_MIB, is_hit=True)
    stakes.window_bytes(99, MIB)
    stakes.read(1, is_hit=False)
    assert stakes.free_bytes == -MOST_OWED_BYTES


def test_guesses_at_what_is_here_already_cost_nothing() -> None:
    """Readers of what lies in L1: runs are read over that nobody had to fetch."""
    stakes = Stakes(CHUNK)
    for number in range(2_000):
        stakes.goes_on(number, 4 * MIB, chunks(4, 1))
        stakes.goes_on(number, 5 * MIB, range(0))
        stakes.read(6 * PER_MIB, is_hit=True)
    before_bytes = stakes.free_bytes
    stakes.goes_on(9_999, 4 * MIB, chunks(1_000, 4))
    stakes.read(5 * PER_MIB, is_hit=True)
    stakes.window_bytes(0, MIB)
    assert before_bytes - stakes.free_bytes < MIB / 2


def test_where_runs_end_that_one_has_lasted_is_less_evidence() -> None:
    stakes = Stakes(CHUNK)
    for number in range(8):
        stakes.goes_on(number, 64 * MIB, chunks(100 * number, 1))
        stakes.read(65 * PER_MIB, is_hit=False)  # it is left
    assert stakes.window_bytes(9, 64 * MIB) == 2 * MIB  # something is owed
    stakes.read(1_000 * PER_MIB, is_hit=False)
    assert stakes.window_bytes(9, 64 * MIB) == MOST_SAVED_BYTES
    for place in range(1_000, 1_200):  # and those after it go on
        stakes.goes_on(10, 64 * MIB, chunks(place, 1))
        stakes.goes_on(10, 64 * MIB, range(0))
    assert stakes.window_bytes(9, 64 * MIB) > 16 * MIB
