"""Times of code of ours, on a machine that others use as well."""

import time
from pathlib import Path


class Stopwatch:
    """Seconds since it was made, without those in which this thread waited for a processor."""

    def __init__(self) -> None:
        self._begun_s = time.monotonic() - _queued_s()

    @property
    def passed_s(self) -> float:
        return time.monotonic() - _queued_s() - self._begun_s


def _queued_s() -> float:
    """How long this thread could have run and did not, as Linux counts it."""
    return int(Path("/proc/thread-self/schedstat").read_text(encoding="ascii").split()[1]) / 1e9
