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

_PRIOR_RUNS = 4.0
_PRIOR_CHANCE = 0.75
"""Before anything is known a run is believed to double, and four runs say otherwise."""


class RunLengths:
    """The lengths of the runs of one image."""

    def __init__(self) -> None:
        self._ended = [0.0] * _BUCKETS
        self._total = 0.0

    def add(self, run_bytes: int) -> None:
        """A run has ended at this length."""
        if self._total >= _MEMORY:
            self._ended = [count / 2 for count in self._ended]
            self._total /= 2
        self._ended[_bucket(run_bytes)] += 1
        self._total += 1

    def chance_to_double(self, run_bytes: int) -> float:
        """Return the chance that a run which is this long becomes at least twice as long."""
        bucket = _bucket(run_bytes)
        longer = sum(self._ended[bucket + 1 :])
        reached = longer + self._ended[bucket]
        return (longer + _PRIOR_RUNS * _PRIOR_CHANCE) / (reached + _PRIOR_RUNS)


def _bucket(run_bytes: int) -> int:
    return min(_BUCKETS - 1, max(0, (run_bytes // _SMALLEST_BYTES).bit_length()))
