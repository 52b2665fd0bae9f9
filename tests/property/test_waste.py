"""What fetching ahead costs readers at random places, whatever their runs are like."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cachefs.policy.evict.names import make_policy
from cachefs.policy.evict.order import Ticks
from cachefs.policy.prefetch.arms import learning_arms
from cachefs.policy.prefetch.learner import Rows
from cachefs.policy.prefetch.replay import Replay
from cachefs.policy.prefetch.seam import Arm
from cachefs.policy.prefetch.sequential import Sequential
from cachefs.simulate.ahead import Recorded, unlike_keys
from cachefs.simulate.ahead import Replay as Played
from cachefs.units import KIB, MIB

CHUNK = 64 * KIB
IMAGE_BYTES = 512 * MIB
MOST_SHARE = 0.05
FLOOR_BYTES = 4 * MIB
"""What may be wasted before reads have paid for it: of runs 1 MiB, and what one run of some MiB has
ahead; of a replay 3 MiB."""

RUNS = st.lists(st.integers(1, 2_048).map(lambda n: n * 4 * KIB), min_size=1, max_size=5)


def runs_of(
    chosen: Random, lengths: list[int], read_bytes: int, at_once: int, total_bytes: int
) -> Iterator[tuple[int, int]]:
    """Yield reads: runs of these lengths at random places, some backwards, so many at once."""
    runs: list[list[tuple[int, int]]] = [[] for _ in range(at_once)]
    while total_bytes > 0:
        run = chosen.choice(runs)
        if not run:
            length = chosen.choice(lengths)
            begin = chosen.randrange((IMAGE_BYTES - length) // 4096) * 4096
            end = begin + length
            run += [(at, min(read_bytes, end - at)) for at in range(begin, end, read_bytes)]
            if chosen.random() < 0.75:
                run.reverse()  # it is taken from its end
        at, size = run.pop()
        yield at, size
        total_bytes -= size


def wasted(
    arms: list[Arm], reads: Iterator[tuple[int, int]], known: Rows | None = None
) -> tuple[int, int, Rows | None]:
    """Read; returns the bytes that were wasted, and fetched, and what the replay has learned."""
    image = Recorded(CHUNK, unlike_keys(IMAGE_BYTES // CHUNK))
    played = Played(image, image.chunks + 1, make_policy("lru", Ticks()), arms)
    replays = [arm for arm in arms if isinstance(arm, Replay)]
    if known is not None:
        replays[0].taught(image, known)
    played.open()
    for at, size in reads:
        first = at // CHUNK
        played.now_s += 0.002
        played.read(first, (at + size - 1) // CHUNK - first + 1, at, size)
    learned = replays[0].learned(image) if replays else None
    played.close()
    whole = played.result.whole
    fetched = whole.fetched + played.result.misses
    return (whole.fetched - whole.used) * CHUNK, fetched * CHUNK, learned


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32), RUNS, st.sampled_from([4, 32, 128, 1024]), st.integers(1, 4))
def test_runs_at_random_places_waste_a_floor_and_a_share_at_most(
    seed: int, lengths: list[int], read_kib: int, at_once: int
) -> None:
    total_bytes = min(128 * MIB, 4_000 * read_kib * KIB)
    reads = runs_of(Random(seed), lengths, read_kib * KIB, at_once, total_bytes)
    wasted_bytes, fetched_bytes, _ = wasted([Sequential(), *learning_arms()], reads)
    assert wasted_bytes <= FLOOR_BYTES + MOST_SHARE * fetched_bytes


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.integers(0, 2**32),
    st.sampled_from([4, 64, 256]),
    st.integers(1, 3),
    st.integers(500, 3_000),
)
def test_a_profile_of_random_reads_is_not_replayed_to_a_random_reader(
    seed: int, read_kib: int, before: int, reads: int
) -> None:
    size = read_kib * KIB
    chosen = Random(seed)
    known = None
    for _ in range(before):
        _, _, known = wasted([Replay()], runs_of(chosen, [size], size, 1, reads * size), known)
    wasted_bytes, fetched_bytes, _ = wasted(
        [Sequential(), Replay()], runs_of(chosen, [size], size, 1, reads * size), known
    )
    assert wasted_bytes <= FLOOR_BYTES + MOST_SHARE * fetched_bytes


@pytest.mark.parametrize("length_mib", [1, 3, 16])
def test_a_reader_of_runs_of_one_length_is_run_ahead_of_and_wastes_little(length_mib: int) -> None:
    reads = runs_of(Random(1), [length_mib * MIB], 128 * KIB, 1, 256 * MIB)
    wasted_bytes, fetched_bytes, _ = wasted([Sequential()], reads)
    assert wasted_bytes <= MOST_SHARE * fetched_bytes
