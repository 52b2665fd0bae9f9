"""The pattern of an image's accesses, in place and in time, as a person would call it."""

from __future__ import annotations

from collections import deque
from statistics import fmean, pstdev

from cachefs.policy.prefetch.streams import Kind

_MEMORY = 1024.0
"""Reads; older ones fade."""

_LEAST_READS = 8
_SHARE = 0.5
"""A kind that makes up so much of the reads gives the pattern its name; else it is mixed."""

_PAUSE_S = 0.2
"""A longer silence ends a burst."""

_BURSTS = 8
_LEAST_BURSTS = 4
_REGULAR = 0.2
"""Bursts whose distances differ by less than this (deviation / mean) are periodic."""

_ACTIVE_SHARE = 0.3
"""Reads that fill less of the time than this come in bursts."""

NOTHING = "unknown"
MIXED = "mixed"


class Pattern:
    """What the reads of one image look like."""

    def __init__(self) -> None:
        self._reads = dict.fromkeys(Kind, 0.0)
        self._total = 0.0
        self._last_s = self._burst_s = -1.0
        self._distances: deque[float] = deque(maxlen=_BURSTS)
        self._lengths: deque[float] = deque(maxlen=_BURSTS)

    def add(self, kind: Kind, reads: int, time_s: float) -> None:
        """Count reads that continued what was before in this way."""
        self._reads[kind] += reads
        self._total += reads
        if self._total > _MEMORY:
            self._reads = {kind: count / 2 for kind, count in self._reads.items()}
            self._total /= 2
        if self._last_s < 0:
            self._burst_s = time_s
        elif time_s - self._last_s > _PAUSE_S:
            self._distances.append(time_s - self._burst_s)
            self._lengths.append(self._last_s - self._burst_s)
            self._burst_s = time_s
        self._last_s = time_s

    @property
    def place(self) -> str:
        """How the reads lie: `sequential`, `backward`, `strided`, `random`, `mixed`, `unknown`."""
        if self._total < _LEAST_READS:
            return NOTHING
        kind, count = max(self._reads.items(), key=lambda pair: pair[1])
        return kind.value if count >= _SHARE * self._total else MIXED

    @property
    def time(self) -> str:
        """How they come: `periodic`, `bursty`, `steady`."""
        if len(self._distances) < _LEAST_BURSTS:
            return "steady"
        mean_s = fmean(self._distances)
        if pstdev(self._distances) < _REGULAR * mean_s:
            return "periodic"
        return "bursty" if fmean(self._lengths) < _ACTIVE_SHARE * mean_s else "steady"

    def __str__(self) -> str:
        return f"{self.place}, {self.time}"
