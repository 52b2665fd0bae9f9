import logging

import pytest

from cachefs.metrics import Metrics
from cachefs.tiers.jobs import L2Report
from cachefs.tiers.l2.watch import L2Watch


def test_reports_are_summed_up_and_a_dead_fetcher_is_forgotten(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    metrics = Metrics()
    watch = L2Watch("redis://cache", metrics)
    watch.report(1, L2Report({"l2_misses": 3, "l2_errors": 1}, 500, True, "away", "more memory"))
    watch.report(2, L2Report({"l2_misses": 4}, 20, False, "", "more memory"))
    assert (metrics.l2_misses, metrics.l2_errors) == (7, 1)
    assert (metrics.l2_queued_bytes, metrics.l2_open_breakers) == (520, 1)
    assert watch.describe() == {
        "url": "redis://cache",
        "bypassed_by": 1,
        "error": "away",
        "advice": "more memory",
    }
    watch.report(1, L2Report({}, 0, False, "", "more memory"))
    assert (metrics.l2_queued_bytes, metrics.l2_open_breakers) == (20, 0)
    watch.report(2, L2Report({}, 30, True, "away", ""))
    watch.gone(2)
    watch.gone(3)
    assert (metrics.l2_queued_bytes, metrics.l2_open_breakers) == (0, 0)
    assert [record.getMessage() for record in caplog.records] == [
        "L2 redis://cache is left alone until it answers again: away",
        "L2 redis://cache: more memory",
        "L2 redis://cache answers again",
        "L2 redis://cache is left alone until it answers again: away",
        "L2 redis://cache answers again",
    ]


def test_without_an_l2_there_is_nothing_to_tell() -> None:
    assert L2Watch("", Metrics()).describe() is None
