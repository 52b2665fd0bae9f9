"""The pace of fetching ahead: how many requests at once, and how much a second. Pure.

Additive increase, multiplicative decrease (Chiu and Jain, 1989) on the time that requests take:
when one takes much longer than the best of its size did lately, the store, the link or the
processors are busy, and demand needs them more. An outage ends all of it for a pause that doubles;
after it one request tries.
"""

from __future__ import annotations

_SLOW = 2.5
"""Times the best: n requests at once on one link take n times as long each, and no more comes of
it, so beyond this only others wait longer."""

_DECREASE = 0.7
_FIRST_LIMIT = 12.0
_FORGET = 1.02
"""The best time of a size is let grow by this at each request: the store may have become slower."""

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_SMOOTH = 0.2


class Pace:
    """`most` requests at the same time, `bytes_per_s` from the store (0: as fast as it goes)."""

    def __init__(self, most: int, bytes_per_s: int = 0) -> None:
        self._most = max(1, most)
        self._bytes_per_s = bytes_per_s
        self._limit = min(_FIRST_LIMIT, float(self._most))
        self._is_starting = True
        """No request was slow yet: each answer lets one more be sent, which doubles them in the
        time of one, as TCP begins. What a guest needs to start is over before one by one would."""
        self._best_s: dict[int, float] = {}
        self._held_until_s = 0.0
        self._cut_s = 0.0
        self._outages = 0
        self._free_s = 0.0
        """When the bytes asked for so far have had their time, at `bytes_per_s`."""
        self.latency_s = 0.0
        self.speed_bytes_s = 0.0
        """Of one request, smoothed."""

    @property
    def limit(self) -> int:
        """How many requests may be under way at once."""
        return max(1, int(self._limit))

    @property
    def is_interrupted(self) -> bool:
        """Whether the last requests failed."""
        return self._outages > 0

    def wait_s(self, under_way: int, now_s: float) -> float | None:
        """Return when one more request may start: 0 is now, None when another has ended."""
        if under_way >= (1 if self._outages else self.limit):
            return None
        return max(0.0, self._held_until_s - now_s, self._free_s - now_s)

    def asked(self, size_bytes: int, now_s: float) -> None:
        """A request for so many bytes was sent."""
        if self._bytes_per_s:
            self._free_s = max(self._free_s, now_s) + size_bytes / self._bytes_per_s

    def answered(self, size_bytes: int, duration_s: float, now_s: float) -> None:
        """A request was answered."""
        self._outages = 0
        self.latency_s += _SMOOTH * (duration_s - self.latency_s)
        speed = size_bytes / max(duration_s, 1e-6)
        self.speed_bytes_s += _SMOOTH * (speed - self.speed_bytes_s)
        bucket = size_bytes.bit_length()
        best_s = min(self._best_s.get(bucket, duration_s) * _FORGET, duration_s)
        self._best_s[bucket] = best_s
        if duration_s <= _SLOW * best_s:
            more = 1.0 if self._is_starting else 1 / self._limit
            self._limit = min(self._most, self._limit + more)
        elif now_s - self._cut_s > duration_s:  # those sent before the last cut do not count again
            self._limit = max(1.0, self._limit * _DECREASE)
            self._cut_s = now_s
            self._is_starting = False

    def failed(self, now_s: float) -> None:
        """The store did not answer a request, or somebody else's."""
        pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**self._outages)
        self._outages = min(self._outages + 1, 16)
        self._limit = 1.0
        self._is_starting = False
        self._held_until_s = max(self._held_until_s, now_s + pause_s)
