import random
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefs.errors import TierError
from cachefs.tiers.breaker import Breaker, State
from cachefs.tiers.l2.bounded import Bounded, Hedged
from cachefs.tiers.l2.breaker import BypassedError, CircuitBreaker
from cachefs.tiers.l2.retry import Retrying
from cachefs.tiers.l2.workers import Workers
from tests.unit.tiers.l2.stand_in import StandIn, wait_until

ID = bytes(32)


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, pause_s: float) -> None:
        self.now_s += pause_s


def breaker_of(clock: Clock) -> Breaker:
    return Breaker(3, 1, 4, clock, lambda _low, high: high)


# ------------------------------------------------------------------------------------- the breaker
def test_it_opens_after_failures_in_a_row_only() -> None:
    breaker = breaker_of(Clock())
    for _ in range(5):
        breaker.failed()
        breaker.failed()
        breaker.succeeded()
    assert breaker.state is State.CLOSED
    for _ in range(3):
        breaker.failed()
    assert breaker.state.value == "open"


def test_one_probe_goes_through_when_the_pause_is_over() -> None:
    clock = Clock()
    breaker = breaker_of(clock)
    for _ in range(3):
        breaker.failed()
    assert breaker.probe_in_s() == 1
    assert not breaker.allows_probe()
    clock.now_s += 1
    assert breaker.probe_in_s() == 0
    assert breaker.allows_probe()
    assert breaker.state is State.HALF_OPEN
    assert not breaker.allows_probe()
    assert breaker.probe_in_s() is None


def test_pauses_double_up_to_the_longest_and_begin_again_after_a_success() -> None:
    clock = Clock()
    breaker = breaker_of(clock)
    for _ in range(3):
        breaker.failed()
    pauses = []
    for _ in range(5):
        pause_s = breaker.probe_in_s()
        assert pause_s is not None
        pauses.append(pause_s)
        clock.now_s += pause_s
        assert breaker.allows_probe()
        breaker.failed()
    assert pauses == [1, 2, 4, 4, 4]
    clock.now_s += 4
    assert breaker.allows_probe()
    breaker.succeeded()
    breaker.succeeded()
    for _ in range(3):
        breaker.failed()
    assert breaker.probe_in_s() == 1


def test_after_a_probe_the_first_failure_opens_it_for_longer() -> None:
    clock = Clock()
    breaker = breaker_of(clock)
    for _ in range(3):
        breaker.failed()
    clock.now_s += 1
    assert breaker.allows_probe()
    breaker.succeeded()
    breaker.failed()
    assert breaker.state is State.OPEN
    assert breaker.probe_in_s() == 2


def test_changes_are_told_once() -> None:
    clock = Clock()
    breaker = breaker_of(clock)
    states: list[State] = []
    breaker.on_change = lambda: states.append(breaker.state)
    for _ in range(5):
        breaker.failed()
    clock.now_s += 10
    assert breaker.allows_probe()
    breaker.succeeded()
    breaker.succeeded()
    assert states == [State.OPEN, State.CLOSED]


@given(st.lists(st.sampled_from(["ok", "bad", "wait", "probe"]), max_size=60))
def test_no_sequence_leaves_it_without_a_way_back(steps: list[str]) -> None:
    clock = Clock()
    breaker = breaker_of(clock)
    for step in steps:
        if step == "wait":
            clock.now_s += 1.5
        elif step == "probe":
            breaker.allows_probe()
        elif step == "ok":
            breaker.succeeded()
        else:
            breaker.failed()
    if breaker.state is State.HALF_OPEN:
        breaker.failed()
    clock.now_s += 5
    assert breaker.state is State.CLOSED or breaker.allows_probe()
    breaker.succeeded()
    assert breaker.state is State.CLOSED


def test_an_open_breaker_does_not_call() -> None:
    clock, tier = Clock(), StandIn()
    tier.fail = lambda _: True
    guarded = CircuitBreaker(tier, breaker_of(clock), calls_probe=False)
    for _ in range(3):
        with pytest.raises(TierError, match="fails"):
            guarded.get([ID], 1)
    with pytest.raises(BypassedError):
        guarded.get([ID], 1)
    guarded.probe(1)  # not due
    clock.now_s += 1
    with pytest.raises(BypassedError):  # no read is the probe
        guarded.put({ID: b""}, 1)
    assert tier.calls == 3
    tier.fail = lambda _: False
    guarded.probe(1)
    assert guarded.get([ID], 1) == [None]


def test_a_call_may_be_the_probe_where_that_is_wanted() -> None:
    clock, tier = Clock(), StandIn()
    tier.fail = lambda number: number < 3
    guarded = CircuitBreaker(tier, breaker_of(clock), calls_probe=True)
    for _ in range(3):
        with pytest.raises(TierError):
            guarded.put({ID: b"x"}, 1)
    clock.now_s += 1
    assert guarded.put({ID: b"x"}, 1) == 1


# -------------------------------------------------------------------------------------------- retry
def test_what_fails_is_repeated_while_there_is_time() -> None:
    clock, tier = Clock(), StandIn()
    tier.fail = lambda number: number < 2
    retrying = Retrying(tier, 2, clock, clock.sleep)
    assert retrying.get([ID], 1) == [None]
    assert tier.calls == 3
    assert 0 < clock.now_s - 100 < 0.004


def test_there_is_no_try_after_the_last_and_none_after_the_deadline() -> None:
    clock, tier = Clock(), StandIn()
    tier.fail = lambda _: True
    with pytest.raises(TierError, match="call 2"):
        Retrying(tier, 2, clock, clock.sleep).get([ID], 1)
    tier.calls = 0
    with pytest.raises(TierError, match="call 0"):
        Retrying(tier, 5, clock, clock.sleep).get([ID], 0.0001)


def test_each_try_has_only_the_time_that_is_left() -> None:
    clock, tier = Clock(), StandIn()
    waits: list[float] = []

    class Told(StandIn):
        def get(self, ids: object, wait_s: float) -> list[bytes | None]:
            waits.append(wait_s)
            clock.now_s += 0.4
            raise TierError("no")

    with pytest.raises(TierError):
        Retrying(Told(), 5, clock, clock.sleep).get([ID], 1)
    assert tier.calls == 0
    assert waits == sorted(waits, reverse=True)
    assert len(waits) == 3
    assert waits[-1] < 0.2


# ------------------------------------------------------------------------- time and number of calls
def test_a_call_that_is_late_is_left_and_interrupted() -> None:
    tier = StandIn()
    tier.delay_s = lambda _: 20.0
    begin_s = time.monotonic()
    with pytest.raises(TierError, match="no answer within 30 ms"):
        Bounded(tier, Workers(1)).get([ID], 0.03)
    assert time.monotonic() - begin_s < 1
    assert tier.interrupts == 1


def test_more_calls_than_allowed_are_refused_at_once() -> None:
    tier, workers = StandIn(), Workers(2)
    tier.delay_s = lambda _: 20.0
    bounded = Bounded(tier, workers)
    threads = [threading.Thread(target=lambda: bounded.get([ID], 20)) for _ in range(2)]
    for thread in threads:
        thread.start()
    wait_until(lambda: workers.busy == 2)
    with pytest.raises(TierError, match="as many requests as allowed"):
        bounded.get([ID], 20)
    tier.released.set()
    for thread in threads:
        thread.join()
    assert workers.busy == 0
    tier.delay_s = lambda _: 0.0
    assert bounded.get([ID], 1) == [None]


def test_whatever_a_library_raises_is_an_error_of_the_tier() -> None:
    class Broken(StandIn):
        def get(self, ids: object, wait_s: float) -> list[bytes | None]:
            raise ZeroDivisionError("a library's own")

    bounded = Bounded(Broken(), Workers(1))
    for _ in range(3):
        with pytest.raises(TierError, match="a library's own"):
            bounded.get([ID], 1)


# ------------------------------------------------------------------------------------------- hedges
def test_a_second_request_goes_out_after_the_p95_and_the_first_answer_counts() -> None:
    tier = StandIn()
    hedged = Hedged(tier, Workers(2))
    for _ in range(60):
        hedged.get([ID], 5)
    assert hedged.patience_s is not None
    assert hedged.patience_s < 0.05
    late = tier.calls
    hedges = hedged.hedges
    tier.delay_s = lambda number: 20.0 if number == late else 0.0
    begin_s = time.monotonic()
    assert hedged.get([ID], 5) == [None]
    assert time.monotonic() - begin_s < 1
    assert hedged.hedges == hedges + 1
    tier.released.set()


def test_an_error_counts_only_when_no_request_is_left() -> None:
    tier = StandIn()
    hedged = Hedged(tier, Workers(2))
    hedged.patience_s = 0.001
    tier.delay_s = lambda number: 0.1 if number == 0 else 0.01
    tier.fail = lambda number: number == 1
    tier.frames[ID] = b"frame"
    assert hedged.get([ID], 5) == [b"frame"]
    tier.calls = 0
    tier.fail = lambda _: True
    with pytest.raises(TierError):
        hedged.get([ID], 5)


def test_both_late_is_late_and_both_are_interrupted() -> None:
    tier = StandIn()
    hedged = Hedged(tier, Workers(2))
    hedged.patience_s = 0.001
    tier.delay_s = lambda _: 20.0
    begin_s = time.monotonic()
    with pytest.raises(TierError, match="no answer within"):
        hedged.get([ID], 0.05)
    assert time.monotonic() - begin_s < 1
    assert tier.interrupts == 1


def test_the_p95_follows_what_is_measured() -> None:
    class Stepping(Hedged):
        def measured(self, latency_s: float) -> None:
            self._measure(latency_s)

    hedged = Stepping(StandIn(), Workers(2))
    latencies = [n / 1000 for n in range(1, 201)]
    random.Random(1).shuffle(latencies)
    for latency_s in latencies[:39]:
        hedged.measured(latency_s)
    assert hedged.patience_s is None
    for latency_s in latencies[39:]:
        hedged.measured(latency_s)
    assert hedged.patience_s == pytest.approx(0.191)
