"""The daemon's view of L2: sums up what its fetchers report.

Concurrency: event loop only.
"""

from __future__ import annotations

import logging
from typing import Any

from cachefs.metrics import Metrics
from cachefs.tiers.jobs import L2Report

logger = logging.getLogger(__name__)


class L2Watch:
    """Takes reports; `url` is empty where there is no L2."""

    def __init__(self, url: str, metrics: Metrics) -> None:
        self._url = url
        self._metrics = metrics
        self._last: dict[int, L2Report] = {}
        self._advice = ""
        self._is_bypassed = False

    def report(self, pid: int, report: L2Report) -> None:
        """Take what a fetcher says."""
        for name, count in report.counts.items():
            setattr(self._metrics, name, getattr(self._metrics, name) + count)
        self._last[pid] = report
        self._sum_up()
        if report.advice and report.advice != self._advice:
            self._advice = report.advice
            logger.warning("L2 %s: %s", self._url, report.advice)

    def gone(self, pid: int) -> None:
        """Forget a fetcher that has ended; what it had queued is lost."""
        if self._last.pop(pid, None) is not None:
            self._sum_up()

    def describe(self) -> dict[str, Any] | None:
        """Return the state for `cachefs status`; None where there is no L2."""
        if not self._url:
            return None
        return {
            "url": self._url,
            "bypassed_by": sum(report.is_bypassed for report in self._last.values()),
            "error": next((r.error for r in self._last.values() if r.error), None),
            "advice": self._advice or None,
        }

    def _sum_up(self) -> None:
        reports = self._last.values()
        bypassing = [report for report in reports if report.is_bypassed]
        self._metrics.l2_queued_bytes = sum(report.queued_bytes for report in reports)
        self._metrics.l2_open_breakers = len(bypassing)
        if bool(bypassing) != self._is_bypassed:
            self._is_bypassed = bool(bypassing)
            if bypassing:
                logger.warning(
                    "L2 %s is left alone until it answers again: %s", self._url, bypassing[0].error
                )
            else:
                logger.warning("L2 %s answers again", self._url)
