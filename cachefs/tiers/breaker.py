"""The circuit breaker: after some failures in a row a tier is left alone, and probed now and then.

    closed --failures in a row--> open --pause is over--> half-open --success--> closed
                                    ^------------------------failure---|

Pauses double up to a bound and are spread, so that many hosts do not come back in one moment.
Concurrency: any thread.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from enum import Enum


class State(Enum):
    """What a breaker lets through: all, nothing, or one call that probes."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Breaker:
    """Counts failures, and says whether to call."""

    def __init__(
        self,
        failures: int,
        first_pause_s: float,
        longest_pause_s: float,
        clock: Callable[[], float] = time.monotonic,
        spread: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._limit = failures
        self._first_pause_s = first_pause_s
        self._longest_pause_s = longest_pause_s
        self._clock = clock
        self._spread = spread
        self._lock = threading.Lock()
        self._state = State.CLOSED
        self._failures = 0
        self._pause_s = first_pause_s
        self._due_s = 0.0
        self.on_change: Callable[[], None] = lambda: None
        """Called without the lock when the state has become open or closed."""

    @property
    def state(self) -> State:
        """What it lets through now."""
        return self._state

    def probe_in_s(self) -> float | None:
        """Return how long until a probe is due; None while it is closed or one is under way."""
        if self._state is not State.OPEN:
            return None
        return max(0.0, self._due_s - self._clock())

    def allows_probe(self) -> bool:
        """Whether a call may go through as a probe now; if so, it has to tell how it went."""
        with self._lock:
            if self._state is State.OPEN and self._clock() >= self._due_s:
                self._state = State.HALF_OPEN
                return True
            return False

    def forgive(self) -> None:
        """Something else says that it is well again: a probe is due at once."""
        with self._lock:
            self._due_s = self._clock()

    def succeeded(self) -> None:
        """A call went well.

        One that was the probe closes the breaker on trial: the next failure opens it at once, and
        for longer. A server that answers a probe and nothing else is seldom asked.
        """
        with self._lock:
            changed = self._state is not State.CLOSED
            self._failures = self._limit - 1 if changed else 0
            if not changed:
                self._pause_s = self._first_pause_s
            self._state = State.CLOSED
        if changed:
            self.on_change()

    def failed(self) -> None:
        """A call failed."""
        with self._lock:
            self._failures += 1
            was = self._state
            if was is State.HALF_OPEN or (was is State.CLOSED and self._failures >= self._limit):
                self._state = State.OPEN
                self._due_s = self._clock() + self._pause_s * self._spread(0.5, 1.0)
                self._pause_s = min(self._longest_pause_s, 2 * self._pause_s)
            changed = was is State.CLOSED and self._state is State.OPEN
        if changed:
            self.on_change()
