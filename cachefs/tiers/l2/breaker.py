"""L2 behind a circuit breaker (tiers/breaker.py). Concurrency: any thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

from cachefs.errors import TierError
from cachefs.tiers.breaker import Breaker, State
from cachefs.tiers.l2.seam import FrameTier
from cachefs.tiers.l2.wrapper import Wrapper

_Result = TypeVar("_Result")


class BypassedError(TierError):
    """The breaker is open: the tier was not asked."""


class Guarded(NamedTuple):
    """A tier and the breaker that it is behind."""

    tier: FrameTier
    breaker: Breaker


class CircuitBreaker(Wrapper):
    """A tier behind a breaker.

    Args:
        tier: What is called.
        breaker: Decides.
        calls_probe: Whether an ordinary call may be the probe; else only `probe` is, and no reader
            ever waits for a tier that has just been away.
    """

    def __init__(self, tier: FrameTier, breaker: Breaker, *, calls_probe: bool) -> None:
        super().__init__(tier)
        self._breaker = breaker
        self._calls_probe = calls_probe

    def probe(self, wait_s: float) -> None:
        """Probe: when that is due, or the breaker is closed."""
        if self._breaker.state is State.CLOSED or self._breaker.allows_probe():
            self._told(lambda: self._tier.probe(wait_s))

    def _called(self, call: Callable[[float], _Result], wait_s: float) -> _Result:
        if self._breaker.state is not State.CLOSED and not (
            self._calls_probe and self._breaker.allows_probe()
        ):
            raise BypassedError("it failed before, and is left alone for a while")
        return self._told(lambda: call(wait_s))

    def _told(self, call: Callable[[], _Result]) -> _Result:
        try:
            result = call()
        except BaseException:
            self._breaker.failed()
            raise
        self._breaker.succeeded()
        return result
