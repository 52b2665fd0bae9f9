"""How long runs last here: whether a sequential run of so many bytes is worth running ahead of.

A histogram of the lengths at which runs ended, two steps for each doubling, fading. A reader of
whole files ends where files end, one of 1 MiB at random places after 1 MiB, however its requests
were cut; so what a run of 512 KiB promises is learned for each image, not assumed. Runs count
whether or not anything was fetched for them, so a verdict mends itself when the readers change.
"""

from __future__ import annotations

from cachefs.units import KIB

_SMALLEST_BYTES = 4 * KIB
_STEPS = 2
"""For each doubling."""

_BUCKETS = 64
_MEMORY = 64.0
"""Runs; older ones fade."""

_LIKELY = 0.6
"""Running ahead of what is less likely would waste nearly as much as it would use."""

_UNLIKELY = 0.3
"""Where so few runs outlast a step, they end at one length in it, more likely than anywhere."""

_PART_LIKELY = 0.9
"""Of a step in which most runs end, so much is run ahead of that so few have ended by then."""

_ALIKE_STEPS = 3
_ALIKE_SHARE = 0.9
_ALIKE_RUNS = 3.0
_ALIKE_LIKELY = 0.9
"""Where so many runs ended, and nearly all within a few steps of each other, their reader takes
pieces of one size from random places: what lies among those ends is as good as a coin. A run that
has outgrown them is another reader's."""

_PRIOR_RUNS = 4.0
_PRIOR_CHANCE = 0.75
"""To double, before anything is known: a few runs that end say otherwise."""

_PRIOR_REACHED = [
    _PRIOR_RUNS * _PRIOR_CHANCE ** (steps / _STEPS) for steps in range(2 * _STEPS + 1)
]
"""Of these runs, by how many steps they become longer."""

_BYTES = [int(_SMALLEST_BYTES * 2 ** (step / _STEPS)) for step in range(_BUCKETS + 2 * _STEPS)]
"""Where a step begins."""


class RunLengths:
    """The lengths of the runs of one image."""

    def __init__(self) -> None:
        self._ended = [0.0] * _BUCKETS
        self._total = 0.0
        self._reach: dict[int, tuple[int, int, float]] = {}

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

    def exchange(self, went_on_bytes: int, ended_bytes: int) -> None:
        """A run that was taken for ended at one length goes on, and another has ended (0: none).

        Where readers take turns that is so at each access, most often at the same step.
        """
        if went_on_bytes and ended_bytes and _bucket(went_on_bytes) == _bucket(ended_bytes):
            return
        if went_on_bytes:
            self.take_back(went_on_bytes)
        if ended_bytes:
            self.add(ended_bytes)

    def reach(self, run_bytes: int) -> tuple[int, float]:
        """Return how long a run of this length will become, more likely than not; and the chance.

        The length is a step of the histogram, and no more than 4 times `run_bytes`. Of a run that
        is likely to end before the next step it is the part of this one that nearly all outlast, if
        they end anywhere in it: a run of 8 MiB goes on for 512 KiB even where most end before 11.
        Where nearly all end in one step there is no such part.
        """
        bucket = _bucket(run_bytes)
        found = self._reach.get(bucket)
        if found is None:
            found = self._reach[bucket] = self._furthest(bucket)
        until_bytes, more_bytes, chance = found
        return max(until_bytes, run_bytes + more_bytes), chance

    def _furthest(self, bucket: int) -> tuple[int, int, float]:
        """Return the step until which runs are likely to go on, or for how many bytes more."""
        ended = self._ended
        longer = sum(ended[bucket:])
        reached = longer + _PRIOR_RUNS
        likely = _ALIKE_LIKELY if bucket < self._alike_until() else _LIKELY
        furthest, sure = 0, 0.0
        for steps in range(1, 2 * _STEPS + 1):
            further = bucket + steps
            longer -= ended[further - 1] if further <= _BUCKETS else 0.0
            chance = (longer + _PRIOR_REACHED[steps]) / reached
            if chance < likely:
                if steps == 1 and likely == _LIKELY and chance >= _UNLIKELY:
                    step_bytes = _BYTES[further] - _BYTES[bucket]
                    return 0, int(step_bytes * (1 - _PART_LIKELY) / (1 - chance)), _PART_LIKELY
                break
            furthest, sure = _BYTES[further], chance
        return furthest, 0, sure

    def _alike_until(self) -> int:
        """Return the step by which nearly all runs ended at about the same length, 0 if none."""
        least = _ALIKE_SHARE * self._total
        most = max(self._ended)
        if self._total < _ALIKE_RUNS or _ALIKE_STEPS * most < least:
            return 0
        peak = self._ended.index(most)  # which is among the steps that have nearly all
        begins = range(max(0, peak - _ALIKE_STEPS + 1), peak + 1)
        runs, less = max((sum(self._ended[at : at + _ALIKE_STEPS]), -at) for at in begins)
        return _ALIKE_STEPS - less if runs >= least else 0


def _bucket(run_bytes: int) -> int:
    times: int = max(run_bytes, _SMALLEST_BYTES) ** _STEPS // _SMALLEST_BYTES**_STEPS
    return min(_BUCKETS - 1, times.bit_length() - 1)
