"""Arms that learn the order of chunks, on orders that are known."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import pytest

from cachefs.policy.evict.names import make_policy
from cachefs.policy.evict.order import Ticks
from cachefs.policy.prefetch.association import Association, _Pairs
from cachefs.policy.prefetch.calibration import Calibration
from cachefs.policy.prefetch.markov import Markov
from cachefs.policy.prefetch.novelty import RECENT, Novelty
from cachefs.policy.prefetch.recurrence import Recurrence
from cachefs.policy.prefetch.seam import Access
from cachefs.simulate.ahead import Recorded, Replay, Result, unlike_keys

CHUNKS = 4_000
KINDS: list[Callable[[], Any]] = [Recurrence, Markov, Association]
every = pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)


def run(arms: list[Any], chunks: list[int], slots: int = 300) -> Result:
    replay = Replay(Recorded(65536, unlike_keys(CHUNKS)), slots, make_policy("lru", Ticks()), arms)
    replay.open()
    for chunk in chunks:
        replay.now_s += 0.001
        replay.read(chunk, 1)
    replay.close()
    return replay.result


def rounds(count: int) -> list[int]:
    """A random order of 1,000 chunks, again and again."""
    order = np.random.default_rng(5).permutation(CHUNKS)[:1_000].tolist()
    return [int(chunk) for chunk in order] * count


@every
def test_an_order_that_comes_again_is_known(make: Callable[[], Any]) -> None:
    result = run([make()], rounds(12))
    assert result.misses < 0.6 * 12_000
    assert result.whole.accuracy > 0.95


@every
def test_a_random_reader_wastes_next_to_nothing(make: Callable[[], Any]) -> None:
    """At most 5% of the bytes that it reads."""
    chunks = np.random.default_rng(7).integers(0, CHUNKS, 20_000).tolist()
    result = run([make()], chunks)
    assert result.whole.fetched - result.whole.used < 0.05 * result.misses


def test_two_chunks_tell_what_one_does_not() -> None:
    """After chunk 7 comes what its predecessor says: of its four followers each is as likely."""
    rng = np.random.default_rng(3)
    arm, image = Markov(), Recorded(65536, unlike_keys(CHUNKS))
    right = wrong = 0
    for turn in range(400):
        which = int(rng.integers(0, 4))
        wished: list[int] = []
        for chunk in (100 + which, 7):
            found = arm.observe(image, Access(float(turn), 1, chunk, 1))
            wished += [wish.first for wish in found if 200 <= wish.first < 204]
        arm.observe(image, Access(float(turn), 1, 200 + which, 1))
        if turn >= 200:
            right += wished == [200 + which]
            wrong += bool(wished) and wished != [200 + which]
        for chunk in (1_000 + rng.permutation(CHUNKS - 1_000)[:RECENT]).tolist():
            arm.observe(image, Access(float(turn), 1, chunk, 1))
    assert right > 150
    assert wrong < 20


def test_the_same_access_is_looked_at_once() -> None:
    novelty, image = Novelty(), Recorded(65536, unlike_keys(CHUNKS))
    access = Access(0.0, 1, 10, 3)
    assert novelty.of(image, access) == [10, 11, 12]
    assert novelty.of(image, access) == [10, 11, 12]
    assert novelty.of(image, Access(0.0, 1, 11, 3)) == [13]
    for chunk in range(100, 100 + RECENT):
        novelty.of(image, Access(0.0, 1, chunk, 1))
    assert novelty.of(image, Access(0.0, 1, 10, 1)) == [10]


@every
def test_knowledge_is_worth_something_at_once(make: Callable[[], Any]) -> None:
    """An arm that was taught does better in the first round than one that was not."""
    image = Recorded(65536, unlike_keys(CHUNKS))
    teacher = make()
    for at, chunk in enumerate(rounds(8)):
        teacher.observe(image, Access(at / 1e3, 1, chunk, 1))
    rows = teacher.learned(image)
    assert rows is not None
    pupil = make()
    replay = Replay(image, 300, make_policy("lru", Ticks()), [pupil])
    pupil.taught(image, rows)
    replay.open()
    for chunk in rounds(1):
        replay.now_s += 0.001
        replay.read(chunk, 1)
    assert replay.result.misses < 900
    assert run([make()], rounds(1)).misses == 1_000


def test_only_chunks_that_may_be_strong_are_judged_and_it_makes_no_difference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(11)
    order = rounds(6) + rng.integers(0, CHUNKS, 20_000).tolist() + rounds(70)[:40_000]
    some, judged = _Pairs(), 0
    every_one = _Pairs()

    def judge_all(rows: Any) -> None:
        for row in rows.tolist():
            every_one.judge(row)

    def judge(row: int) -> None:
        nonlocal judged
        judged += 1
        _Pairs.judge(some, row)

    monkeypatch.setattr(every_one, "_judge_all", judge_all)
    monkeypatch.setattr(some, "judge", judge)
    for at, chunk in enumerate(order):
        some.take([chunk])
        every_one.take([chunk])
        if at % 256 == 255:
            assert some.strong == every_one.strong
    assert np.array_equal(some.times, every_one.times)
    assert np.array_equal(some.counts, every_one.counts)
    assert len(some.strong) > 500
    judged, before = 0, judged
    for chunk in range(CHUNKS, 2 * CHUNKS):  # a scan
        some.take([chunk])
    assert before > 5_000
    assert judged < CHUNKS / 10


def test_what_comes_true_by_chance_is_not_believed_before_its_horizon() -> None:
    """One of six expectations comes true some time; what does not is known to be wrong soon."""
    calibration, chance = Calibration(1), Random(1)
    believed = 0
    for turn in range(2_000):
        believed += len(calibration.expect([(chance.randrange(6_000), 0)], floor=0.7))
        calibration.seen([chance.randrange(1_000)])
        if turn == 300:
            believed = 0
    assert not believed
