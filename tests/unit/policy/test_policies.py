"""What all policies have in common, and that they decide as the literature does."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachefs.policy.evict import lfu as lfu_module
from cachefs.policy.evict import order as order_module
from cachefs.policy.evict.lru import Lru
from cachefs.policy.evict.names import POLICIES, make_policy
from cachefs.policy.evict.order import Ticks
from cachefs.policy.evict.seam import Arrival
from cachefs.simulate.accesses import Accesses, numbered
from cachefs.simulate.replay import belady, replay

SLOTS = 12
SHORT_QUEUES = [2, 4096]
each_policy = pytest.mark.parametrize("name", POLICIES)
libcachesim: Any = pytest.importorskip("libcachesim")


def nothing(slot: int) -> bool:
    return False


def workload(seed: int, accesses: int = 30_000) -> Accesses:
    """Popular chunks, bursts, loops and one-off scans."""
    rng = np.random.default_rng(seed)
    parts: list[np.ndarray[Any, np.dtype[np.int64]]] = []
    fresh, length = 10_000, 0
    while length < accesses:
        kind = rng.integers(4)
        if kind == 0:
            part = rng.zipf(1.2, 400) % 3_000
        elif kind == 1:
            part = np.repeat(rng.integers(0, 3_000, 50), rng.integers(1, 6, 50))
        elif kind == 2:
            part = np.tile(np.arange(3_000, 3_000 + rng.integers(50, 300)), 2)
        else:
            part = np.arange(fresh, fresh + 250)
            fresh += 250
        parts.append(part)
        length += len(part)
    return numbered(f"workload {seed}", np.concatenate(parts), 65_536)


def theirs(name: str, accesses: Accesses, slots: int) -> int:
    kind = {"lru": "LRU", "lfu": "LFU", "arc": "ARC", "s3fifo": "S3FIFO"}.get(name)
    cache = getattr(libcachesim, kind or {"sieve": "Sieve", "2q": "TwoQ"}[name])(slots)
    request = libcachesim.Request()
    request.obj_size = 1
    misses = 0
    for chunk in accesses.chunks.tolist():
        request.obj_id = chunk + 1
        misses += not cache.get(request)
    return misses


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("slots", [40, 300, 1500])
@pytest.mark.parametrize("name", ["lru", "lfu", "s3fifo", "sieve", "2q"])
def test_misses_are_those_of_libcachesim(name: str, slots: int, seed: int) -> None:
    accesses = workload(seed)
    assert replay(accesses, slots, make_policy(name, Ticks())).misses == theirs(
        name, accesses, slots
    )


@pytest.mark.parametrize("slots", [40, 300, 1500])
def test_arc_is_near_libcachesim(slots: int) -> None:
    """Not equal: it evicts before it knows whether the missing chunk is a ghost of it (arc.py)."""
    accesses = workload(1)
    ours = replay(accesses, slots, make_policy("arc", Ticks())).misses
    assert ours == pytest.approx(theirs("arc", accesses, slots), rel=0.01)


@each_policy
def test_no_policy_beats_belady(name: str) -> None:
    accesses = workload(3, 8_000)
    assert replay(accesses, 200, make_policy(name, Ticks())).misses >= belady(accesses, 200).misses


def test_belady_is_the_best_of_all_ways() -> None:
    chunks = [0, 1, 2, 0, 3, 1, 0, 4, 2, 3, 0, 1]
    # By hand, three slots: 0 1 2 miss, 3 takes 2's, 4 takes 3's or 1's ..., each choice the best.
    accesses = numbered("by hand", np.array(chunks), 65_536)
    assert belady(accesses, 3).misses == min(_all_ways(chunks, 3))


def _all_ways(chunks: list[int], slots: int) -> Iterator[int]:
    def misses(at: int, held: frozenset[int]) -> int:
        if at == len(chunks):
            return 0
        chunk = chunks[at]
        if chunk in held:
            return misses(at + 1, held)
        if len(held) < slots:
            return 1 + misses(at + 1, held | {chunk})
        return 1 + min(misses(at + 1, (held - {victim}) | {chunk}) for victim in held)

    yield misses(0, frozenset())


@each_policy
def test_a_scan_that_reads_everything_once(name: str) -> None:
    """S3-FIFO, 2Q and ARC keep what is popular; nobody is worse than LRU by more than a little."""
    rng = np.random.default_rng(5)
    popular = rng.zipf(1.3, 20_000) % 400
    scan = np.arange(1_000, 6_000)
    accesses = numbered("scan", np.concatenate([popular, scan, popular]), 65_536)
    found = {n: replay(accesses, 300, make_policy(n, Ticks())).misses for n in ("lru", name)}
    assert found[name] <= found["lru"] * 1.3
    if name in {"s3fifo", "2q", "arc"}:
        assert found[name] < found["lru"]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("use"), st.lists(st.integers(0, SLOTS - 1), max_size=20)),
        st.tuples(st.just("remove"), st.integers(0, SLOTS - 1)),
        st.tuples(st.just("fill"), st.integers(1, 60)),
        st.tuples(st.just("evict"), st.integers(0, 5), st.sets(st.integers(0, SLOTS - 1))),
    ),
    max_size=60,
)


@each_policy
@settings(max_examples=120)
@given(STEPS, st.sampled_from(SHORT_QUEUES))
def test_one_by_one_or_in_batches_is_the_same_and_slots_add_up(
    name: str, steps: list[tuple[Any, ...]], queue: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order_module, "_QUEUE_LENGTH", queue)
        patch.setattr(lfu_module, "_QUEUE_LENGTH", queue)
        single, batched = make_policy(name, Ticks()), make_policy(name, Ticks())
        single.grow(SLOTS)
        batched.grow(SLOTS)
        occupied: set[int] = set()
        for step in steps:
            _step(step, single, batched, occupied)
            for policy in (single, batched):
                assert {slot for slot in range(SLOTS) if policy.holds(slot)} == occupied
                assert (policy.coldest_slot() is None) == (not occupied)
        left = single.evict(SLOTS, nothing)
        assert left == batched.evict(SLOTS, nothing)
        assert len(left) >= min(len(occupied), queue)
        assert set(left) <= occupied


def _step(step: tuple[Any, ...], single: Lru, batched: Lru, occupied: set[int]) -> None:
    match step:
        case ("use", list(slots)):
            for slot in slots:
                single.touch(slot)
            batched.touch_many(np.array(slots, np.int64))
        case ("remove", int(slot)):
            single.remove(slot)
            batched.remove(slot)
            occupied.discard(slot)
        case ("fill", int(key)):
            slot = next((s for s in range(SLOTS) if s not in occupied), None)
            if slot is not None:
                single.insert(slot, Arrival(key=key))
                batched.insert(slot, Arrival(key=key))
                occupied.add(slot)
        case ("evict", int(count), set(kept)):
            chosen = single.evict(count, kept.__contains__)
            assert chosen == batched.evict(count, kept.__contains__)
            assert len(set(chosen)) == len(chosen) <= count
            assert set(chosen) <= occupied - kept
            occupied.difference_update(chosen)


@each_policy
def test_all_that_may_go_goes(name: str) -> None:
    policy = make_policy(name, Ticks())
    policy.grow(50)
    for slot in range(50):
        policy.insert(slot, Arrival(key=slot + 1))
    policy.touch_many(np.arange(0, 50, 2))
    policy.touch_many(np.arange(0, 50, 2))
    assert set(policy.evict(50, lambda slot: slot < 5)) == set(range(5, 50))
    assert policy.evict(1, lambda slot: True) == []
    assert set(policy.evict(50, nothing)) == set(range(5))
    assert policy.evict(1, nothing) == []


@each_policy
def test_a_restart_takes_over_the_recency(name: str) -> None:
    old, new = make_policy(name, Ticks()), make_policy(name, Ticks())
    for policy in (old, new):
        policy.grow(30)
        policy.insert_many(np.arange(30))
    old.touch_many(np.array([0, 1, 2, 3]))
    new.restore(old.snapshot())
    assert new.coldest_slot() == old.coldest_slot() == 4
    new.touch(4)
    assert new.coldest_slot() == 5
    with pytest.raises(ValueError, match="snapshot"):
        new.restore(np.zeros((2, 2), np.uint32))


@pytest.mark.parametrize("name", ["lru", "lfu", "arc", "ml"])
def test_what_was_used_with_too_many_others_to_learn_from_stays(name: str) -> None:
    policy = make_policy(name, Ticks())
    policy.grow(40)
    for slot in range(40):
        policy.insert(slot, Arrival(key=slot + 1))
    policy.touch_many(np.arange(40))
    for _ in range(3):
        policy.renew_many(np.arange(20))
        policy.renew_many(np.array([3, 39, 39]))
    assert policy.coldest_slot() == 20
    assert not set(policy.evict(10, nothing)) & {*range(20), 39}


@each_policy
def test_uses_of_empty_slots_are_passed_over(name: str) -> None:
    policy = make_policy(name, Ticks())
    policy.grow(40)
    policy.insert(3)
    policy.touch(7)
    policy.touch_many(np.arange(40))
    policy.touch_many(np.array([8, 9]))
    assert [slot for slot in range(40) if policy.holds(slot)] == [3]
    assert policy.evict(40, nothing) == [3]


@each_policy
def test_clocks_that_overflow_lose_no_slot(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order_module, "LAST_TICK", 400)
    policy = make_policy(name, Ticks())
    policy.grow(20)
    for slot in range(20):
        policy.insert(slot, Arrival(key=slot + 1))
    for round_ in range(100):
        policy.touch_many(np.arange(round_ % 5, 20))
        for slot in policy.evict(2, nothing):
            policy.insert(slot, Arrival(key=100 * round_ + slot + 1))
    assert all(policy.holds(slot) for slot in range(20))
    assert sorted(policy.evict(20, nothing)) == list(range(20))


@pytest.mark.parametrize("make", [lambda ticks: make_policy("lru", ticks)])
def test_a_policy_that_is_closed_leaves_its_clock(make: Callable[[Ticks], Lru]) -> None:
    ticks = Ticks()
    kept, closed = make(ticks), make(ticks)
    closed.close()
    assert ticks._orders == [kept._used]


def test_the_order_is_exact_over_many_slots() -> None:
    """So many that the queue is cut by a sample, not by a partition."""
    slots = 4 * order_module._SAMPLE + 70_000
    policy = make_policy("lru", Ticks())
    policy.grow(slots)
    policy.insert_many(np.arange(slots))
    rng = np.random.default_rng(2)
    policy.touch_many(rng.integers(0, slots, slots))
    expected = np.argsort(policy.snapshot(), kind="stable")[:9_000].tolist()
    found: list[int] = []
    while len(found) < len(expected):
        chosen = policy.evict(256, nothing)
        assert chosen
        found += chosen
    assert found[: len(expected)] == expected
