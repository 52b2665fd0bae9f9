"""Accesses: what was read through the lane, for the policy and for the figures.

The lane writes every read into a ring on the board, whoever answers it; this task digests them in
batches. The reader tells the eviction policy of the hits that it answers itself; those of the lane
come from here.

Concurrency: event loop only.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import trio

from cachefs.metrics import Metrics
from cachefs.tiers.board import Board
from cachefs.tiers.l1 import L1

_BUSY_PAUSE_S = 0.05
"""While there are reads: 65,536 records in the ring last for a million reads a second."""

_AHEAD_PAUSE_S = 0.02
"""While what was fetched ahead waits to be read: what is read of it says what comes next, and a
start that was calm may go on at any time."""

_CALM_PAUSE_S = 0.25
"""While there are none, or the lane answers all of them and nothing is fetched ahead of them: each
turn takes a processor from those who read, and on small machines their places on it."""

_CALM_RECORDS = 32_768
"""In a calm pause at most: half of the ring."""

Observer = Callable[[npt.NDArray[np.void]], None]
"""Takes a batch of accesses, (n,) ACCESS_DTYPE, in the order in which they came."""


class Accesses:
    """Brings policy and metrics up to date with what the lane has answered."""

    def __init__(self, board: Board, l1: L1, metrics: Metrics) -> None:
        self._board = board
        self._l1 = l1
        self._metrics = metrics
        self.observers: list[Observer] = []
        self._is_calm = True
        """Whether the lane has answered all of the last batch."""
        l1.digest = self.digest

    async def run(self) -> None:
        """Digest until cancelled. Each turn is also a sign of life for the supervisor."""
        pause_s = _CALM_PAUSE_S
        while True:
            self._board.beat()
            pause_s = self._pause_s(self.digest() / pause_s)
            await trio.sleep(pause_s)

    def digest(self) -> int:
        """Digest what there is now, a bounded batch; return how many accesses it were."""
        accesses, slots = self._board.drain()
        if len(slots):
            self._l1.touch_many(slots)
        if len(accesses):
            self._is_calm = bool(accesses["by_lane"].all())
            for observe in self.observers:
                observe(accesses)
        self._metrics.take_lane(self._board.counters())
        return len(accesses)

    def _pause_s(self, reads_per_s: float) -> float:
        if self._metrics.ahead_jobs or self._metrics.ahead_unread_bytes:
            return _AHEAD_PAUSE_S
        if not reads_per_s:
            return _CALM_PAUSE_S
        if not self._is_calm:
            return _BUSY_PAUSE_S
        return min(_CALM_PAUSE_S, max(_BUSY_PAUSE_S, _CALM_RECORDS / reads_per_s))
