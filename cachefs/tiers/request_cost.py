"""What a request to a store costs, and which ranges that makes worth asking for. Pure.

A request costs a fixed time and a time for each byte. Both were measured for each kind of store
(docs/decisions/0031), and follow what the requests of this process take since.
"""

from __future__ import annotations

from dataclasses import dataclass

from cachefs.units import KIB, MIB

_OVERHEAD = 0.05
"""A range is long enough when the request itself is this part of its time."""

_LEAST_GAP_BYTES = 4 * KIB
_MOST_GAP_BYTES = MIB
_LEAST_RANGE_BYTES = MIB
_MOST_RANGE_BYTES = 8 * MIB
"""learning.md: at about 8 MiB the gain of merging ends; and a range is in memory as a whole."""

_MEMORY = 64
"""The measured start weighs as much as so many requests, and older ones fade at this rate."""


@dataclass(frozen=True, slots=True)
class RangeLimits:
    """`gap_bytes`: read along rather than asked for apart. `range_bytes`: no longer than this."""

    gap_bytes: int
    range_bytes: int


class RequestCost:
    """The time of a request as `fixed_s + size_bytes / bytes_per_s`, fitted to what was seen.

    Least squares with weights that fade. The start is two requests that lie on the measured line,
    so that requests of one size alone, which fit any slope, leave the slope as it was.
    """

    def __init__(self, fixed_s: float, bytes_per_s: float) -> None:
        self._weight = self._sizes = self._times = self._squares = self._products = 0.0
        for size_bytes in (0, 4 * MIB):
            self._add(size_bytes, fixed_s + size_bytes / bytes_per_s, _MEMORY / 2)
        self._slope_s = 1 / bytes_per_s

    def observe(self, size_bytes: int, duration_s: float) -> None:
        """Learn from a request that succeeded."""
        keep = 1 - 1 / _MEMORY
        self._weight *= keep
        self._sizes *= keep
        self._times *= keep
        self._squares *= keep
        self._products *= keep
        self._add(size_bytes, duration_s, 1.0)

    def limits(self) -> RangeLimits:
        """Return what is worth asking for now."""
        fixed_s, byte_s = self.line()
        worth_bytes = fixed_s / byte_s
        return RangeLimits(
            int(min(max(worth_bytes, _LEAST_GAP_BYTES), _MOST_GAP_BYTES)),
            int(min(max(worth_bytes / _OVERHEAD, _LEAST_RANGE_BYTES), _MOST_RANGE_BYTES)),
        )

    def line(self) -> tuple[float, float]:
        """Return the fixed time and the time for each byte, in seconds; neither is negative."""
        mean_size, mean_time = self._sizes / self._weight, self._times / self._weight
        spread = self._squares / self._weight - mean_size**2
        slope_s = self._slope_s
        if spread > (4 * KIB) ** 2:  # else all are of one size
            fitted_s = (self._products / self._weight - mean_size * mean_time) / spread
            slope_s = min(max(fitted_s, 1e-11), 1e-5)  # 100 GB/s to 100 kB/s
        return max(0.0, mean_time - slope_s * mean_size), slope_s

    def _add(self, size_bytes: int, duration_s: float, weight: float) -> None:
        self._weight += weight
        self._sizes += weight * size_bytes
        self._times += weight * duration_s
        self._squares += weight * size_bytes**2
        self._products += weight * size_bytes * duration_s


def local_cost() -> RequestCost:
    """Return the cost at a local folder: open, pread and close of what the page cache has."""
    return RequestCost(10e-6, 27e9)


def s3_cost() -> RequestCost:
    """Return the cost at S3 before the first request: a server that is near."""
    return RequestCost(2.4e-3, 840e6)
