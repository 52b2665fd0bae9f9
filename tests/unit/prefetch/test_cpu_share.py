"""The share of a processor that looking at reads may take."""

from cachefs.prefetch.cpu_share import MOST_SAVED_S, SHARE, CpuShare


def test_whatever_a_batch_costs_no_more_than_the_share_is_taken() -> None:
    share, spent_s, seconds = CpuShare(), 0.0, 100
    for turn in range(20 * seconds):
        if share.is_left(turn / 20):
            share.spend(0.01)
            spent_s += 0.01
    assert SHARE * seconds <= spent_s <= SHARE * seconds + MOST_SAVED_S + 0.01


def test_what_is_left_is_saved_up_to_a_bound() -> None:
    share = CpuShare()
    assert share.is_left(0.0)
    assert share.is_left(1e6)
    share.spend(MOST_SAVED_S)
    assert not share.is_left(1e6)
    assert not share.is_left(0.0)  # a clock that goes back earns nothing
    assert share.is_left(1e6)
