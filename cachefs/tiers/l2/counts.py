"""What happened at L2 in one fetcher since it was last told. Concurrency: any thread."""

from __future__ import annotations

import threading
from collections import Counter

from cachefs.tiers.jobs import L2Report

READING, WRITING = "reading", "writing"


class Counts:
    """Collects figures by the names of the metrics that they belong to, and makes reports."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._told: L2Report | None = None
        self._errors: dict[str, str] = {}
        self.advice = ""
        """For the operator."""

    def add(self, name: str, count: int = 1) -> None:
        """Add to a metric."""
        if count:
            with self._lock:
                self._counts[name] += count

    def failed(self, what: str, error: Exception) -> None:
        """Count a request that failed, of READING or WRITING."""
        self.add("l2_errors")
        self._errors[what] = str(error)

    def went_well(self, what: str) -> None:
        """The last failure of this kind is over."""
        self._errors.pop(what, None)

    def report(self, queued_bytes: int, *, is_bypassed: bool) -> L2Report | None:
        """Return what is new since the last report; None: nothing."""
        with self._lock:
            error = self._errors.get(READING) or self._errors.get(WRITING, "")
            report = L2Report(dict(self._counts), queued_bytes, is_bypassed, error, self.advice)
            told = self._told
            state = (report.queued_bytes, report.is_bypassed, report.error, report.advice)
            if not report.counts and (
                told is not None
                and state == (told.queued_bytes, told.is_bypassed, told.error, told.advice)
            ):
                return None
            self._counts.clear()
            self._told = report
            return report
