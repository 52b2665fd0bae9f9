import random
import time
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachefs.policy.evict import order as module
from cachefs.policy.evict.lru import Lru
from cachefs.policy.evict.order import Ticks

SLOTS = 24


def nothing(slot: int) -> bool:
    return False


def occupied(count: int, ticks: Ticks | None = None) -> Lru:
    policy = Lru(ticks or Ticks())
    policy.grow(count)
    for slot in range(count):
        policy.insert(slot)
    return policy


class Model:
    """The order of use as an ordered dict."""

    def __init__(self) -> None:
        self.order: OrderedDict[int, None] = OrderedDict()

    def use(self, slot: int) -> None:
        self.order[slot] = None
        self.order.move_to_end(slot)

    def victims(self, count: int, kept: set[int]) -> list[int]:
        return [slot for slot in self.order if slot not in kept][:count]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("use"), st.integers(0, SLOTS - 1)),
        st.tuples(st.just("remove"), st.integers(0, SLOTS - 1)),
        st.tuples(st.just("evict"), st.integers(0, 6), st.sets(st.integers(0, SLOTS - 1))),
        st.tuples(st.just("coldest")),
        st.tuples(st.just("restart")),
    ),
    max_size=60,
)


@settings(max_examples=300)
@given(STEPS, st.sampled_from([2, 5, 4096]))
def test_the_order_is_exactly_that_of_use(steps: list[tuple[object, ...]], queue: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_QUEUE_LENGTH", queue)
        policy, model = Lru(Ticks()), Model()
        policy.grow(SLOTS)
        for step in steps:
            match step:
                case ("use", int(slot)):
                    if slot in model.order:
                        policy.touch(slot)
                    else:
                        policy.insert(slot)
                    model.use(slot)
                case ("remove", int(slot)):
                    policy.remove(slot)
                    model.order.pop(slot, None)
                case ("evict", int(count), set(kept)):
                    chosen = policy.evict(count, kept.__contains__)
                    expected = model.victims(count, kept)
                    # One queue at a time: at least what it holds, and never out of order.
                    assert chosen == expected[: len(chosen)]
                    assert len(chosen) >= min(len(expected), queue - len(kept))
                    for slot in chosen:
                        policy.remove(slot)
                        del model.order[slot]
                case ("coldest",):
                    snapshot = policy.snapshot()
                    ticks = snapshot[snapshot > 0]
                    assert policy.coldest() == (min(ticks) if len(ticks) else module.LAST_TICK)
                case ("restart",):
                    snapshot, policy = policy.snapshot(), Lru(Ticks())
                    policy.grow(SLOTS)
                    for slot in sorted(model.order):
                        policy.insert(slot)
                    policy.restore(snapshot)
        assert set(np.flatnonzero(policy.snapshot())) == set(model.order)
        left = policy.evict(SLOTS, nothing)
        assert left == list(model.order)[: len(left)]


def test_a_slot_that_is_kept_stays_and_is_next_when_it_is_not() -> None:
    policy = occupied(4)
    assert policy.evict(2, {0, 1}.__contains__) == [2, 3]
    policy.remove(2)
    policy.remove(3)
    assert policy.evict(4, nothing) == [0, 1]


def test_all_kept_is_an_empty_answer() -> None:
    policy = occupied(4)
    assert policy.evict(4, lambda slot: True) == []
    assert policy.evict(4, nothing) == [0, 1, 2, 3]


def test_nobody_is_named_twice_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_QUEUE_LENGTH", 2)
    policy = occupied(3)
    chosen = policy.evict(3, nothing)
    assert len(chosen) == len(set(chosen))


def test_thousands_of_victims_take_no_time() -> None:
    policy = occupied(60_000)
    policy.evict(1, nothing)  # the queue is full but for one
    started_s = time.process_time()
    chosen = policy.evict(8_000, nothing)
    assert len(chosen) > 4_000
    assert time.process_time() - started_s < 0.15  # the event loop stands still meanwhile


def test_classes_share_one_clock_and_compare() -> None:
    ticks = Ticks()
    first, second = occupied(2, ticks), occupied(2, ticks)
    assert first.coldest() < second.coldest()
    first.touch(0)
    first.touch(1)
    assert second.coldest() < first.coldest()


def test_an_empty_class_is_colder_than_none() -> None:
    policy = occupied(1)
    cold = policy.coldest()
    policy.remove(0)
    assert policy.coldest() > cold


def test_ticks_that_overflow_are_halved_in_all_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LAST_TICK", 32)
    ticks = Ticks()
    first, second = Lru(ticks), Lru(ticks)
    first.grow(4)
    second.grow(2)
    for slot in range(4):
        first.insert(slot)
    second.insert(1)
    for _ in range(200):
        second.touch(1)
    second.insert(0)
    used = [*first.snapshot(), *second.snapshot()]
    assert max(used) <= 32
    assert min(first.snapshot()) > 0  # an occupied slot stays occupied
    assert max(first.snapshot()) < min(second.snapshot())
    assert sorted(first.evict(4, nothing)) == [0, 1, 2, 3]
    assert second.evict(2, nothing) == [1, 0]


def test_halving_keeps_the_order() -> None:
    policy = occupied(50)
    for slot in (7, 3, 40):
        policy.touch(slot)
        for _ in range(5):
            policy.touch(0)
    policy._used.halve()
    order = policy.evict(50, nothing)
    assert order[-1] == 0
    assert [slot for slot in order if slot in {7, 3, 40}] == [7, 3, 40]


def test_a_snapshot_of_another_size_is_taken_as_far_as_it_goes() -> None:
    old = occupied(3)
    old.touch(0)
    longer, shorter = occupied(5), occupied(2)
    longer.restore(old.snapshot())
    assert [slot for slot in longer.evict(5, nothing) if slot < 3] == [1, 2, 0]
    shorter.restore(old.snapshot())
    assert shorter.evict(2, nothing) == [1, 0]


def test_a_restored_policy_goes_on_later_than_its_past() -> None:
    old = occupied(3)
    for _ in range(100):
        old.touch(1)
    new = occupied(3)
    new.restore(old.snapshot())
    new.touch(0)
    assert new.evict(3, nothing) == [2, 1, 0]


def test_a_slot_that_is_empty_now_stays_empty_whatever_the_snapshot_says() -> None:
    old, new = occupied(3), Lru(Ticks())
    new.grow(3)
    new.insert(2)
    new.restore(old.snapshot())
    assert new.evict(3, nothing) == [2]


def test_growing_keeps_what_is_there() -> None:
    policy = occupied(3)
    policy.grow(1)
    policy.grow(10)
    policy.insert(9)
    assert policy.evict(10, nothing) == [0, 1, 2, 9]


def test_a_batch_of_touches_is_as_touches_one_by_one() -> None:
    one, many = Lru(Ticks()), Lru(Ticks())
    choice = random.Random(4)
    for policy in (one, many):
        policy.grow(64)
        for slot in range(0, 64, 2):
            policy.insert(slot)
    for _ in range(50):
        batch = [choice.randrange(64) for _ in range(choice.randrange(40))]
        for slot in batch:
            one.touch(slot)
        many.touch_many(np.array(batch, np.int64))
        chosen = one.evict(5, nothing)
        assert many.evict(5, nothing) == chosen
        for slot in chosen:
            one.insert(slot)
            many.insert(slot)
    assert not many.holds(1)


def test_a_batch_at_the_end_of_the_clock_keeps_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LAST_TICK", 100)
    policy = occupied(8)
    for _ in range(30):
        policy.touch_many(np.array([3, 1, 2, 3], np.int64))
        policy.touch_many(np.array([3, 1, 2, 3] * 4, np.int64))  # long enough for numpy
    assert policy.evict(8, nothing)[-3:] == [1, 2, 3]
