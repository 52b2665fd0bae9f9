"""Faults as data: what goes wrong, at which call, in which requests."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal[
    "status", "reset", "cut", "hang", "flip", "shorten", "other_range", "error_body", "none"
]


@dataclass(frozen=True)
class Fault:
    """What happens to one answer.

    Attributes:
        kind: `status`: an answer with `status` and `code` in place of the real one. `reset`: the
            connection is reset (RST) after `after` of the answer. `cut`: it is closed there in
            order. `hang`: nothing more comes, until the proxy ends. `flip`: one bit of the body is
            another. `shorten`: the body, and the length that is told, are shorter. `other_range`:
            the answer says that it is of another range. `error_body`: 200, with an error inside.
        after: How much of the answer passes before it happens: 0 is before its first byte, 1.0
            just before its last byte.
        status: Of `status`.
        code: Of S3, of `status` and `error_body`.
        delay_s: Passes before anything of the answer does.
        bytes_per_s: Passes at most so fast.
    """

    kind: Kind = "none"
    after: float = 0.0
    status: int = 503
    code: str = "SlowDown"
    delay_s: float = 0.0
    bytes_per_s: float | None = None


NO_FAULT = Fault()
Matches = Callable[[str], bool]


def everything(_: str) -> bool:
    return True


@dataclass
class Script:
    """The faults of the next calls that match; what is not in the script passes.

    A call is named by its first line, as in `GET /bucket/key HTTP/1.1`.
    """

    _faults: dict[int, Fault] = field(default_factory=dict)
    _always: Fault | None = None
    _matches: Matches = everything
    _lock: threading.Lock = field(default_factory=threading.Lock)
    calls: list[str] = field(default_factory=list)
    """All calls since `play`, matching or not."""
    matched: int = 0

    def play(self, *faults: Fault, matches: Matches = everything) -> None:
        """From now on the k-th call that matches gets the k-th fault."""
        self._set(dict(enumerate(faults)), None, matches)

    def play_always(self, fault: Fault, matches: Matches = everything) -> None:
        """From now on every call that matches gets this fault."""
        self._set({}, fault, matches)

    def stop(self) -> None:
        """From now on all passes."""
        self._set({}, None, everything)

    def next_fault(self, call: str) -> Fault:
        """Return what happens to a call."""
        with self._lock:
            self.calls.append(call)
            if not self._matches(call):
                return NO_FAULT
            number = self.matched
            self.matched += 1
            return self._always or self._faults.get(number, NO_FAULT)

    def _set(self, faults: dict[int, Fault], always: Fault | None, matches: Matches) -> None:
        with self._lock:
            self._faults, self._always, self._matches = faults, always, matches
            self.calls, self.matched = [], 0
