"""Two ways to call a tier within a time and within a number of calls: plainly, and hedged."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from functools import partial
from typing import Any, TypeVar

from cachefs.errors import TierError
from cachefs.tiers.l2.seam import FrameTier
from cachefs.tiers.l2.workers import Workers
from cachefs.tiers.l2.wrapper import Wrapper

_Result = TypeVar("_Result")

_LATENCIES = 200
"""How many of the last latencies the p95 is taken from: ten lie above it."""

_LEAST_LATENCIES = 40
_RECKON_EVERY = 20


class Bounded(Wrapper):
    """A tier whose calls end in time, at most so many of them at once.

    Args:
        tier: What is called, in a thread of `workers`.
        workers: Their number is the limit.
    """

    def __init__(self, tier: FrameTier, workers: Workers) -> None:
        super().__init__(tier)
        self._workers = workers

    def _called(self, call: Callable[[float], _Result], wait_s: float) -> _Result:
        future = self._start(partial(call, wait_s))
        if future is None:
            raise TierError("as many requests as allowed are under way already")
        done, _ = wait((future,), wait_s)
        return self._result(done, wait_s)

    def _start(self, call: Callable[[], _Result]) -> Future[_Result] | None:
        return self._workers.start(call)

    def _result(self, done: set[Future[_Result]], wait_s: float) -> _Result:
        """Return what ended well, else raise why nothing did."""
        error: BaseException | None = None
        for future in done:
            error = future.exception()
            if error is None:
                return future.result()
        if isinstance(error, TierError):
            raise error
        if error is not None:
            raise TierError(f"{type(error).__name__}: {error}") from error
        self._tier.interrupt()
        raise TierError(f"no answer within {wait_s * 1000:.0f} ms")


class Hedged(Bounded):
    """Asks a second time, on another connection, when an answer takes longer than the p95 so far.

    The first answer counts. Off by default: it helps where single requests are late, and makes more
    load where all are. (Dean and Barroso, The Tail at Scale, 2013.)
    """

    def __init__(
        self, tier: FrameTier, workers: Workers, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(tier, workers)
        self._clock = clock
        self._latencies_s: deque[float] = deque(maxlen=_LATENCIES)
        self._measured = 0
        self.patience_s: float | None = None
        """After how long the second request goes out; None: too few answers so far."""
        self.hedges = 0
        """How many second requests there were."""

    def get(self, ids: Sequence[bytes], wait_s: float) -> list[bytes | None]:
        """Return the frames of chunks, from whichever request is answered first."""
        begin_s = self._clock()

        def call() -> list[bytes | None]:
            return self._tier.get(ids, wait_s)

        first = self._start(call)
        if first is None:
            raise TierError("as many requests as allowed are under way already")
        calls: set[Future[Any]] = {first}
        if self.patience_s is not None and self.patience_s < wait_s:
            done, _ = wait(calls, self.patience_s)
            second = None if done else self._start(call)
            if second is not None:
                self.hedges += 1
                calls.add(second)
        found: list[bytes | None] = self._first_good(calls, begin_s + wait_s, wait_s)
        self._measure(self._clock() - begin_s)
        return found

    def _first_good(self, calls: set[Future[Any]], end_s: float, wait_s: float) -> Any:
        """Return the first good answer; an error counts only when no other request is left."""
        pending = set(calls)
        while True:
            left_s = max(0.0, end_s - self._clock())
            done, pending = wait(pending, left_s, FIRST_COMPLETED)
            if not done or not pending or any(f.exception() is None for f in done):
                return self._result(done, wait_s)

    def _measure(self, latency_s: float) -> None:
        self._latencies_s.append(latency_s)
        self._measured += 1
        if self._measured >= _LEAST_LATENCIES and self._measured % _RECKON_EVERY == 0:
            ordered = sorted(self._latencies_s)
            self.patience_s = ordered[len(ordered) * 95 // 100]
