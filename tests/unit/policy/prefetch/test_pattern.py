"""What a pattern is called."""

import pytest

from cachefs.policy.prefetch.pattern import Pattern
from cachefs.policy.prefetch.streams import Kind


@pytest.mark.parametrize("kind", list(Kind))
def test_a_kind_gives_its_name(kind: Kind) -> None:
    pattern = Pattern()
    assert pattern.place == "unknown"
    for n in range(100):
        pattern.add(kind, 1, n / 100)
    assert str(pattern) == f"{kind.value}, steady"


def test_no_kind_that_prevails_is_mixed_and_what_is_new_counts_more() -> None:
    pattern = Pattern()
    for n in range(300):
        pattern.add(list(Kind)[n % 3], 1, n / 100)
    assert pattern.place == "mixed"
    for n in range(3000):
        pattern.add(Kind.RANDOM, 1, 3 + n / 100)
    assert pattern.place == "random"


def test_bursts_at_equal_distances_are_periodic_and_others_bursty() -> None:
    periodic, bursty = Pattern(), Pattern()
    begin_s = 0.0
    for burst in range(8):
        begin_s += (0.5, 3.0, 1.1, 7.0, 0.7, 2.0, 9.0, 4.0)[burst]
        for n in range(20):
            periodic.add(Kind.RANDOM, 1, burst * 2.0 + n / 1000)
            bursty.add(Kind.RANDOM, 1, begin_s + n / 1000)
    assert periodic.time == "periodic"
    assert bursty.time == "bursty"
