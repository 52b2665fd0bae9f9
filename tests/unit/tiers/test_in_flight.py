"""The limit of requests in flight, beside stores that answer at once, or one after the other."""

from collections.abc import Callable

from cachefs.tiers.in_flight import InFlight

LEAST, MOST = 4, 60


class Reader:
    """Keeps as many requests under way as it may, at most `depth`, at a store of a model.

    The store takes `latency_s`, and no more than `per_s` requests a second.
    """

    def __init__(self, latency_s: float, per_s: float, depth: int = 1000) -> None:
        self.latency_s, self.per_s, self.depth = latency_s, per_s, depth
        self.in_flight = InFlight(LEAST, MOST)
        self.now_s = 0.0

    def read(self, seconds: float, jitter: Callable[[int], float] = lambda _: 1.0) -> list[int]:
        """Return the limits there were."""
        limits, end_s, number = [], self.now_s + seconds, 0
        while self.now_s < end_s:
            under_way = min(self.in_flight.limit, self.depth)
            duration_s = max(self.latency_s, under_way / self.per_s) * jitter(number)
            self.now_s += duration_s / under_way
            self.in_flight.answered(duration_s, under_way, self.now_s)
            limits.append(self.in_flight.limit)
            number += 1
        return limits


def test_a_far_store_that_answers_all_at_once_gets_as_many_as_may_be() -> None:
    for latency_s in (0.01, 0.03, 0.1):
        limits = Reader(latency_s, 1e6).read(20 * latency_s)
        assert limits[-1] == MOST
        assert limits == sorted(limits)


def test_it_stops_where_requests_wait_for_each_other() -> None:
    """10 ms and 1,000 a second: ten keep it busy."""
    limits = Reader(0.01, 1000).read(30)
    assert 10 <= min(limits[1000:]) <= max(limits[1000:]) <= 30


def test_a_near_store_keeps_the_least_and_a_few() -> None:
    limits = Reader(0.002, 1000).read(30)
    assert max(limits) <= 3 * LEAST


def test_it_stays_there_for_long() -> None:
    """The floor must not follow the queue that it is to tell."""
    limits = Reader(0.01, 1000).read(600)
    assert max(limits) <= 40


def test_times_that_vary_are_no_queue() -> None:
    reader = Reader(0.01, 1e6)
    assert reader.read(2, lambda number: 1 + 0.4 * (number % 3 == 0))[-1] == MOST


def test_who_reads_one_at_a_time_changes_nothing() -> None:
    assert set(Reader(0.01, 1e6, depth=1).read(10)) == {LEAST}


def test_who_needs_few_gets_no_more_than_twice_as_many() -> None:
    assert Reader(0.01, 1e6, depth=8).read(10)[-1] <= 20


def test_a_store_that_becomes_farther_is_learned() -> None:
    reader = Reader(0.01, 1e6)
    reader.read(5)
    reader.latency_s = 0.03
    assert reader.read(30)[-1] < MOST
    assert reader.read(200)[-1] == MOST


def test_outages_halve_it_down_to_the_least() -> None:
    reader = Reader(0.01, 1e6)
    reader.read(2)
    reader.in_flight.failed()
    assert reader.in_flight.limit == MOST // 2
    for _ in range(10):
        reader.in_flight.failed()
    assert reader.in_flight.limit == LEAST
    assert reader.read(2)[-1] == MOST


def test_bounds_that_leave_no_choice() -> None:
    fixed = InFlight(4, 2)
    for number in range(100):
        fixed.answered(0.01, 4, number / 100)
    assert fixed.limit == 4
