"""Times of code of ours, on a machine that others use as well."""

import time
from pathlib import Path


class Stopwatch:
    """What has passed since it was made, for the thread that asks."""

    def __init__(self) -> None:
        self._begun_s, self._queued_s = time.monotonic(), _queued_s()

    @property
    def queued_s(self) -> float:
        """Seconds in which this thread waited for a processor."""
        return _queued_s() - self._queued_s

    @property
    def passed_s(self) -> float:
        """All other seconds: in which it ran, or waited for something else."""
        return time.monotonic() - self._begun_s - self.queued_s


def _queued_s() -> float:
    """How long this thread could have run and did not, as Linux counts it."""
    return int(Path("/proc/thread-self/schedstat").read_text(encoding="ascii").split()[1]) / 1e9
