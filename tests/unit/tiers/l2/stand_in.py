"""A tier in memory that fails when it is told to, and is as slow as it is told to be."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence

from cachefs.errors import TierError


class StandIn:
    """Counts calls; `fail` is asked at each, by its number."""

    def __init__(self) -> None:
        self.frames: dict[bytes, bytes] = {}
        self.calls = 0
        self.interrupts = 0
        self.fail: Callable[[int], bool] = lambda _: False
        self.delay_s: Callable[[int], float] = lambda _: 0.0
        self.released = threading.Event()
        self.text = ""

    def get(self, ids: Sequence[bytes], wait_s: float) -> list[bytes | None]:
        self._call()
        return [self.frames.get(identity) for identity in ids]

    def put(self, frames: Mapping[bytes, bytes], wait_s: float) -> int:
        self._call()
        self.frames |= frames
        return len(frames)

    def touch(self, ids: Sequence[bytes], wait_s: float) -> list[bool]:
        self._call()
        return [identity in self.frames for identity in ids]

    def probe(self, wait_s: float) -> None:
        self._call()

    def advice(self) -> str:
        return self.text

    def interrupt(self) -> None:
        self.interrupts += 1
        self.released.set()

    def close(self) -> None:
        pass

    def _call(self) -> None:
        number, self.calls = self.calls, self.calls + 1
        delay_s = self.delay_s(number)
        if delay_s:
            self.released.wait(delay_s)
        if self.fail(number):
            raise TierError(f"call {number} fails")


def wait_until(condition: Callable[[], bool], wait_s: float = 60) -> None:
    end_s = time.monotonic() + wait_s
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.002)
