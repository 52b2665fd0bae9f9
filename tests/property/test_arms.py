"""Whatever guests do and whatever was learned before, arms keep within their bounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachefs.errors import CachefsError, FormatError
from cachefs.policy.prefetch import association, markov, recurrence
from cachefs.policy.prefetch.association import Association
from cachefs.policy.prefetch.learner import SECTIONS
from cachefs.policy.prefetch.markov import Markov
from cachefs.policy.prefetch.profile import Profile, from_bytes, merge, to_bytes
from cachefs.policy.prefetch.recurrence import Recurrence
from cachefs.policy.prefetch.replay import Replay
from cachefs.policy.prefetch.seam import Access, Wish
from cachefs.simulate.ahead import Recorded, unlike_keys

CHUNKS = 40
MAKERS: list[Callable[[], Any]] = [Recurrence, Markov, Association, Replay]
makers = pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)

accesses = st.lists(
    st.tuples(st.integers(0, CHUNKS - 1), st.integers(1, 4), st.booleans(), st.floats(0, 0.5)),
    max_size=150,
)


def rows_of(name: str, data: bytes) -> Any:
    size = SECTIONS[name].itemsize
    rows = np.frombuffer(data[: len(data) // size * size], SECTIONS[name]).copy()
    for field in rows.dtype.names or ():  # what reading a profile refuses does not come further
        if rows[field].dtype.kind == "f":
            rows[field][~((rows[field] >= 0) & (rows[field] <= 1e6))] = 1.0
    return rows


def play(arm: Any, reads: list[tuple[int, int, bool, float]], rows: Any = None) -> list[Wish]:
    image = Recorded(64 * 1024, unlike_keys(CHUNKS))
    if rows is not None:
        arm.taught(image, rows)
    wishes = list(arm.opened(image, 0.0))
    now_s = 0.0
    for first, count, is_hit, pause_s in reads:
        now_s += pause_s
        access = Access(now_s, 1, first, min(count, CHUNKS - first), is_hit)
        found = list(arm.observe(image, access))
        wishes += found
        for wish in found[:2]:
            arm.judged(image, wish.first, first % 2 == 0)
    learned = arm.learned(image)
    arm.closed(image, now_s)
    assert learned is None or learned.dtype == SECTIONS[arm.name]
    return wishes


@makers
@given(reads=accesses, data=st.binary(max_size=400))
@settings(max_examples=60)
def test_wishes_lie_within_the_image_and_are_repeatable(
    make: Callable[[], Any], reads: list[tuple[int, int, bool, float]], data: bytes
) -> None:
    rows = rows_of(make().name, data)
    wishes = play(make(), reads, rows)
    for wish in wishes:
        assert wish.count > 0
        assert wish.first >= 0
        assert wish.first + wish.count <= CHUNKS
        assert 0.0 <= wish.confidence <= 1.0
        assert wish.due_s >= 0.0
    assert play(make(), reads, rows) == wishes


@makers
@given(reads=st.lists(st.sampled_from(range(12)), min_size=30, max_size=30))
@settings(max_examples=20)
def test_what_was_learned_comes_back(make: Callable[[], Any], reads: list[int]) -> None:
    """Knowledge goes through bytes and to an image where everything lies elsewhere."""
    keys = unlike_keys(CHUNKS)
    image, moved = Recorded(65536, keys), Recorded(65536, np.roll(keys, 7))
    arm = make()
    arm.opened(image, 0.0)
    for turn in range(24):
        for at, chunk in enumerate(reads):
            arm.observe(image, Access(turn + at / 30, 1, chunk, 1))
        for noise in range(20, CHUNKS):  # pushes out what was read a moment ago
            arm.observe(image, Access(turn + 0.99, 1, noise, 1))
    rows = arm.learned(image)
    if rows is None:
        return
    profile = from_bytes(to_bytes(Profile("a", 65536, {arm.name: rows})))
    other = make()
    other.taught(moved, profile.sections[arm.name])
    other.opened(moved, 0.0)
    again = other.learned(moved)
    assert again is not None
    assert set(again["key"].tolist()) <= set(keys.tolist())
    assert len(again)


@given(data=st.binary(max_size=600))
def test_garbage_is_no_profile(data: bytes) -> None:
    with pytest.raises(CachefsError):
        from_bytes(data)


@given(
    rows=st.lists(st.integers(1, 2**64 - 1), max_size=20),
    at=st.integers(0, 10_000),
    flip=st.integers(1, 255),
)
def test_a_damaged_profile_is_told(rows: list[int], at: int, flip: int) -> None:
    keys = np.array([(key,) for key in rows], SECTIONS["recurrence"])
    data = bytearray(to_bytes(Profile("a", 4096, {"recurrence": keys})))
    data[at % len(data)] ^= flip
    with pytest.raises(CachefsError):
        from_bytes(bytes(data))
    with pytest.raises(CachefsError):
        from_bytes(bytes(data)[: at % len(data)])


@given(data=st.binary(min_size=24, max_size=200))
def test_counts_that_are_none_are_refused(data: bytes) -> None:
    rows = np.frombuffer(data[: len(data) // 24 * 24], SECTIONS["association"])
    counts = np.concatenate((rows["count"], rows["of"]))
    is_sane = bool(((counts >= 0) & (counts <= 1e6)).all())
    try:
        from_bytes(to_bytes(Profile("a", 4096, {"association": rows})))
    except FormatError:
        assert not is_sane
    else:
        assert is_sane


@given(first=st.binary(max_size=500), second=st.binary(max_size=500))
@settings(max_examples=60)
def test_merging_ends_with_a_profile(first: bytes, second: bytes) -> None:
    sections = [{name: rows_of(name, data) for name in SECTIONS} for data in (first, second)]
    both = merge(Profile("a", 4096, sections[0]), Profile("b", 4096, sections[1]))
    again = from_bytes(to_bytes(both))
    assert set(again.sections) == set(SECTIONS)
    for name, rows in again.sections.items():
        assert len(rows) <= len(sections[0][name]) + len(sections[1][name])


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recurrence, "MOST_LOGGED", 500)
    monkeypatch.setattr(markov, "MOST_CONTEXTS", 500)
    monkeypatch.setattr(association, "MOST_TRACKED", 256)
    image = Recorded(4096, unlike_keys(20_000))
    rng = np.random.default_rng(1)
    arms: list[Any] = [Recurrence(), Markov(), Association(), Replay()]
    for chunk in rng.integers(0, 20_000, 8_000).tolist():
        for arm in arms:
            arm.observe(image, Access(1.0, 1, chunk, 1))
    rows = [arm.learned(image) for arm in arms[:3]]
    assert rows[0] is not None
    assert len(rows[0]) <= 500
    assert rows[1] is not None
    assert len(rows[1]) <= 2 * 500 * 4
    assert rows[2] is None or len(rows[2]) <= 256 * 8
