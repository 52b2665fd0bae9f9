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

_IDLE_PAUSE_S = 0.25

Observer = Callable[[npt.NDArray[np.void]], None]
"""Takes a batch of accesses, (n,) ACCESS_DTYPE, in the order in which they came."""


class Accesses:
    """Brings policy and metrics up to date with what the lane has answered."""

    def __init__(self, board: Board, l1: L1, metrics: Metrics) -> None:
        self._board = board
        self._l1 = l1
        self._metrics = metrics
        self.observers: list[Observer] = []
        l1.digest = self.digest

    async def run(self) -> None:
        """Digest until cancelled. Each turn is also a sign of life for the supervisor."""
        while True:
            self._board.beat()
            count = self.digest()
            await trio.sleep(_BUSY_PAUSE_S if count else _IDLE_PAUSE_S)

    def digest(self) -> int:
        """Digest what there is now, a bounded batch; return how many accesses it were."""
        accesses, slots = self._board.drain()
        if len(slots):
            self._l1.touch_many(slots)
        if len(accesses):
            for observe in self.observers:
                observe(accesses)
        self._metrics.take_lane(self._board.counters())
        return len(accesses)
