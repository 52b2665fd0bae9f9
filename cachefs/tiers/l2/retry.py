"""Another try for what failed quickly (a connection that was closed), while there is time."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from cachefs.errors import TierError
from cachefs.tiers.l2.seam import FrameTier
from cachefs.tiers.l2.wrapper import Wrapper

_Result = TypeVar("_Result")

_FIRST_PAUSE_S = 0.001
"""A new connection on a local network takes less; the second pause is twice as long."""


class Retrying(Wrapper):
    """A tier whose failed calls are repeated at most `retries` times, within the caller's time."""

    def __init__(
        self,
        tier: FrameTier,
        retries: int,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(tier)
        self._retries = retries
        self._clock = clock
        self._sleep = sleep

    def _called(self, call: Callable[[float], _Result], wait_s: float) -> _Result:
        end_s = self._clock() + wait_s
        pause_s = _FIRST_PAUSE_S
        for tries_left in range(self._retries, -1, -1):
            left_s = end_s - self._clock()
            try:
                return call(left_s)
            except TierError:
                pause_s *= 2
                jittered_s = pause_s * random.uniform(0.25, 0.5)
                if not tries_left or self._clock() + jittered_s >= end_s:
                    raise
                self._sleep(jittered_s)
        raise AssertionError("unreachable: the last try returns or raises")
