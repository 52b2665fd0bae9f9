"""The share of a processor that looking at reads may take.

An arm costs ten or twenty microseconds for each read that was a miss, and a guest that reads at
random from a near store has thousands of these a second. What arms could tell then comes too late
anyway, and their time is taken from what serves the guest. So they look as long as they have
something left of their share, at batch after batch, and not at those that come while it is used up.
What a start needs, they have saved up before it.
"""

from __future__ import annotations

SHARE = 0.04
"""Of one processor."""
MOST_SAVED_S = 0.25
"""About 10,000 reads at once; the first minute of a start earns 100,000 more."""


class CpuShare:
    """What is left of the share, in seconds of a processor; `now_s` on any clock that goes on."""

    def __init__(self) -> None:
        self._left_s = MOST_SAVED_S
        self._as_of_s: float | None = None

    def is_left(self, now_s: float) -> bool:
        """Whether there is something to spend."""
        if self._as_of_s is not None:
            earned_s = SHARE * max(0.0, now_s - self._as_of_s)
            self._left_s = min(MOST_SAVED_S, self._left_s + earned_s)
        self._as_of_s = now_s
        return self._left_s > 0

    def spend(self, cpu_s: float) -> None:
        """So much was spent, also if it was more than there was."""
        self._left_s -= cpu_s
