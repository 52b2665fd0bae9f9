import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefs.tiers.request_cost import RequestCost, local_cost, s3_cost
from cachefs.units import KIB, MIB


def learned(cost: RequestCost, fixed_s: float, bytes_per_s: float, sizes: list[int]) -> RequestCost:
    for size_bytes in sizes:
        cost.observe(size_bytes, fixed_s + size_bytes / bytes_per_s)
    return cost


def mixed_sizes(count: int) -> list[int]:
    choice = random.Random(1)
    return [choice.choice([32 * KIB, 256 * KIB, MIB, 4 * MIB]) for _ in range(count)]


def test_the_start_is_the_line_that_was_measured() -> None:
    for cost, fixed_s, byte_s in ((local_cost(), 10e-6, 1 / 27e9), (s3_cost(), 2.4e-3, 1 / 840e6)):
        assert cost.line() == pytest.approx((fixed_s, byte_s))


def test_a_gap_is_worth_what_passes_in_the_time_of_a_request() -> None:
    assert RequestCost(1e-3, 500e6).limits().gap_bytes == pytest.approx(500_000, rel=1e-3)
    assert RequestCost(1e-4, 500e6).limits().gap_bytes == pytest.approx(50_000, rel=1e-3)


def test_a_range_is_so_long_that_the_request_is_a_twentieth_of_it() -> None:
    assert RequestCost(1e-3, 100e6).limits().range_bytes == pytest.approx(2_000_000, rel=1e-3)


def test_limits_have_limits() -> None:
    for fixed_s, bytes_per_s in ((0.0, 1e9), (1e-9, 1e5), (30.0, 1e12)):
        limits = RequestCost(fixed_s, bytes_per_s).limits()
        assert 4 * KIB <= limits.gap_bytes <= MIB
        assert MIB <= limits.range_bytes <= 8 * MIB


def test_the_kinds_of_store_differ() -> None:
    assert local_cost().limits().gap_bytes < s3_cost().limits().gap_bytes


def test_a_store_that_is_far_away_is_learned() -> None:
    fixed_s, byte_s = learned(s3_cost(), 0.030, 100e6, mixed_sizes(1000)).line()
    assert fixed_s == pytest.approx(0.030, rel=0.05)
    assert byte_s == pytest.approx(1 / 100e6, rel=0.05)


def test_a_change_is_learned_in_some_hundred_requests() -> None:
    cost = learned(s3_cost(), 0.030, 100e6, mixed_sizes(1000))
    fixed_s, _ = learned(cost, 0.001, 400e6, mixed_sizes(400)).line()
    assert fixed_s == pytest.approx(0.001, abs=0.0005)


def test_requests_of_one_size_move_the_fixed_time_only() -> None:
    cost = learned(s3_cost(), 0.030, 840e6, [64 * KIB] * 2000)
    fixed_s, byte_s = cost.line()
    assert fixed_s == pytest.approx(0.030, rel=0.05)
    assert byte_s == pytest.approx(1 / 840e6, rel=0.05)


@given(
    st.lists(st.tuples(st.integers(1, 8 * MIB), st.floats(0, 100)), max_size=200),
    st.sampled_from([local_cost, s3_cost]),
)
def test_whatever_is_seen_the_limits_stay_sound(
    seen: list[tuple[int, float]], start: Callable[[], RequestCost]
) -> None:
    cost = start()
    for size_bytes, duration_s in seen:
        cost.observe(size_bytes, duration_s)
    limits = cost.limits()
    assert 4 * KIB <= limits.gap_bytes <= MIB <= limits.range_bytes <= 8 * MIB
