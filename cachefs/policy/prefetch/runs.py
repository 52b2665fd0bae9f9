"""How long runs last here: whether a sequential run of so many bytes is worth running ahead of.

A histogram of the lengths at which runs ended, in powers of two, fading. A reader of whole files
ends where files end, one of 1 MiB at random places after 1 MiB, however its requests were cut; so
what a run of 512 KiB promises is learned for each image, not assumed. Runs count whether or not
anything was fetched for them, so a verdict mends itself when the readers change.
"""

from __future__ import annotations

from cachefs.units import KIB

_SMALLEST_BYTES = 4 * KIB
_BUCKETS = 32
_MEMORY = 64.0
"""Runs; older ones fade."""

_LIKELY = 0.5
"""Running ahead of what is less likely would waste more than it would use."""

_PRIOR_RUNS = 4.0
_PRIOR_CHANCE = 0.75
"""Before anything is known a run is believed to double, and four runs say otherwise."""


class RunLengths:
    """The lengths of the runs of one image."""

    def __init__(self) -> None:
        self._ended = [0.0] * _BUCKETS
        self._total = 0.0
        self._reach: dict[int, tuple[int, float]] = {}

    def add(self, run_bytes: int) -> None:
        """A run has ended at this length."""
        if self._total >= _MEMORY:
            self._ended = [count / 2 for count in self._ended]
            self._total /= 2
        self._ended[_bucket(run_bytes)] += 1
        self._total += 1
        self._reach.clear()

    def take_back(self, run_bytes: int) -> None:
        """A run that was taken for ended at this length goes on."""
        bucket = _bucket(run_bytes)
        less = min(1.0, self._ended[bucket])
        self._ended[bucket] -= less
        self._total -= less
        self._reach.clear()

    def reach(self, run_bytes: int) -> tuple[int, float]:
        """Return how long a run of this length will become, more likely than not; and the chance.

        The length is a power of two, and no more than 4 times `run_bytes`; 0 if it is likely to
        end before the next one.
        """
        bucket = _bucket(run_bytes)
        found = self._reach.get(bucket)
        if found is None:
            found = self._reach[bucket] = self._furthest(bucket)
        return found

    def _furthest(self, bucket: int) -> tuple[int, float]:
        reached = sum(self._ended[bucket:]) + _PRIOR_RUNS
        furthest = 0, 0.0
        for further in (bucket + 1, bucket + 2):
            prior = _PRIOR_RUNS * _PRIOR_CHANCE ** (further - bucket)
            chance = (sum(self._ended[further:]) + prior) / reached
            if chance < _LIKELY:
                break
            furthest = _SMALLEST_BYTES << (further - 1), chance
        return furthest


def _bucket(run_bytes: int) -> int:
    return min(_BUCKETS - 1, max(0, (run_bytes // _SMALLEST_BYTES).bit_length()))
