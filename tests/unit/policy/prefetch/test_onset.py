from random import Random

from cachefs.policy.prefetch.onset import Onsets
from cachefs.units import KIB, MIB

CHUNK = 64 * KIB


def guessed(
    onsets: Onsets, run_chunks: int, runs: int, places: Random, *, is_hit: bool = False
) -> tuple[int, int]:
    """Read runs of so many chunks at random places; return the guesses and how many were right."""
    made = right = 0
    for _ in range(runs):
        first = places.randrange(1 << 20) * 16
        for number in range(run_chunks):
            onsets.read(first + number, 1, is_hit=is_hit)
            if number < 2 and onsets.guess(first + number + 1, number + 1):
                made += 1
                right += number + 1 < run_chunks
    return made, right


def test_where_runs_go_on_their_second_and_third_chunks_are_foreseen() -> None:
    onsets, places = Onsets(CHUNK), Random(1)
    assert guessed(onsets, 4, 3, places) == (0, 0)  # nothing is known yet
    guessed(onsets, 4, 20, places)
    made, right = guessed(onsets, 4, 100, places)
    assert made == right == 200


def test_after_how_many_reads_runs_end_is_told_apart() -> None:
    onsets, places = Onsets(CHUNK), Random(2)
    guessed(onsets, 2, 100, places)
    made, right = guessed(onsets, 2, 100, places)
    assert made == right == 100  # the second chunk, and no third


def test_what_is_here_anyway_needs_no_guess() -> None:
    assert guessed(Onsets(CHUNK), 4, 200, Random(6), is_hit=True) == (0, 0)


def test_a_random_reader_is_never_followed() -> None:
    assert guessed(Onsets(CHUNK), 1, 5000, Random(3)) == (0, 0)


def test_what_is_lost_is_bounded_whatever_was_learned() -> None:
    onsets, places = Onsets(CHUNK), Random(4)
    guessed(onsets, 4, 2000, places)
    made, right = guessed(onsets, 1, 5000, places)
    assert right == 0
    assert made * CHUNK <= 4 * MIB + 5000 * CHUNK / 100


def test_guesses_that_come_true_cost_nothing() -> None:
    onsets, places = Onsets(MIB), Random(5)
    guessed(onsets, 4, 100, places)
    assert guessed(onsets, 4, 1000, places) == (2000, 2000)


def test_small_reads_of_one_chunk_stake_once() -> None:
    onsets, places = Onsets(CHUNK), Random(7)
    guessed(onsets, 4, 100, places)
    for _ in range(1000):
        first = places.randrange(1 << 20) * 16
        onsets.read(first, 1, is_hit=False)
        assert onsets.guess(first + 1, 1) > 0
        onsets.read(first, 1, is_hit=True)
        assert onsets.guess(first + 1, 2) == 0
        onsets.read(first + 1, 1, is_hit=True)


def test_a_long_read_finds_what_waited() -> None:
    onsets, places = Onsets(CHUNK), Random(8)
    guessed(onsets, 4, 100, places)
    for turn in range(1000):
        onsets.read(turn * 10_000, 1, is_hit=False)
        assert onsets.guess(turn * 10_000 + 1, 1) > 0
        onsets.read(turn * 10_000, 5_000, is_hit=True)
