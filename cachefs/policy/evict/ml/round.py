"""Slots in turn, in an order that has nothing to do with how they were filled.

Every slot comes once in a round, so a few hundred draws look at more of a small cache than as many
at random would, and none is drawn twice at once.
"""

from __future__ import annotations

from math import gcd

import numpy as np
import numpy.typing as npt

from cachefs.policy.evict.seam import Slots

_GOLDEN = 0.6180339887


class Round:
    """Draws from 0 to `slots` - 1."""

    def __init__(self, seed: int) -> None:
        self._at = seed * 7919
        self._slots = self._step = self._back = 1
        self._count = 0

    def draw(self, count: int, slots: int) -> Slots:
        """Return the next `count`, at most `slots`, each once."""
        if slots != self._slots:
            self._turn_among(slots)
        self._at = (self._at + self._count) % slots
        self._count = min(count, slots)
        return np.arange(self._at, self._at + self._count) * self._step % slots

    def was_drawn(self, slots: Slots) -> npt.NDArray[np.bool_]:
        """Return which of these were drawn the last time."""
        turn = slots * self._back - self._at
        return np.asarray(turn % self._slots < self._count)

    def _turn_among(self, slots: int) -> None:
        """Step by a golden part of all, which spreads any few draws in a row."""
        self._slots = slots
        self._step = max(1, int(slots * _GOLDEN))
        while gcd(self._step, slots) != 1:
            self._step += 1
        self._back = pow(self._step, -1, slots) if slots > 1 else 0
