"""A wrapper that changes nothing: what each of the others changes stands in its own file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from cachefs.tiers.l2.seam import FrameTier

_Result = TypeVar("_Result")


class Wrapper:
    """Passes the calls for frames through `_called`, and everything else on as it is."""

    def __init__(self, tier: FrameTier) -> None:
        self._tier = tier

    def get(self, ids: Sequence[bytes], wait_s: float) -> list[bytes | None]:
        """Return the frames of chunks."""
        return self._called(lambda left_s: self._tier.get(ids, left_s), wait_s)

    def put(self, frames: Mapping[bytes, bytes], wait_s: float) -> int:
        """Write frames."""
        return self._called(lambda left_s: self._tier.put(frames, left_s), wait_s)

    def touch(self, ids: Sequence[bytes], wait_s: float) -> list[bool]:
        """Return which chunks are here."""
        return self._called(lambda left_s: self._tier.touch(ids, left_s), wait_s)

    def probe(self, wait_s: float) -> None:
        """Probe, in the caller's thread: nobody reads meanwhile, and connecting may take longer."""
        self._tier.probe(wait_s)

    def advice(self) -> str:
        """Return what the tier says."""
        return self._tier.advice()

    def interrupt(self) -> None:
        """End the calls under way."""
        self._tier.interrupt()

    def close(self) -> None:
        """Close the tier's connections."""
        self._tier.close()

    def _called(self, call: Callable[[float], _Result], wait_s: float) -> _Result:
        """Do a call; it is given the time that is left for it."""
        return call(wait_s)
