"""Demotion: chunks that L1 gives up for others are brought to L2, where that is wanted.

Their slots are free again after the next commit, so this is a race, and losing it costs no more
than a fetch from the store some day: a fetcher compares what it finds in the slot with the id.

Concurrency: event loop only.
"""

from __future__ import annotations

import trio

from cachefs.index.residency import Placement
from cachefs.metrics import Metrics
from cachefs.tiers.jobs import Answer, DemoteJob, Leaving
from cachefs.tiers.l1 import L1
from cachefs.tiers.pool import FetcherPool

DEMOTE = 9
"""The priority: after everything that somebody waits for, now or soon."""

_MOST_JOBS = 2
"""Under way or queued: more would find their slots filled again."""

_JOB_CHUNKS = 256
"""As many as the keeper gives up in one go."""


class Demotion:
    """Collects what leaves L1, and hands it to the fetchers."""

    def __init__(self, l1: L1, pool: FetcherPool, metrics: Metrics) -> None:
        self._l1 = l1
        self._pool = pool
        self._metrics = metrics
        self._collected: list[Leaving] = []
        self._jobs = 0
        l1.on_leaving = self._leaving

    def _leaving(self, chunk_id: bytes, placement: Placement) -> None:
        if not self._collected:
            # The keeper gives up many in one go, without an await in between.
            trio.lowlevel.current_trio_token().run_sync_soon(self._submit)
        segment, position = self._l1.target(placement.slot)
        self._collected.append(Leaving(chunk_id, placement.plain_bytes, segment, position))

    def _submit(self) -> None:
        collected, self._collected = self._collected, []
        for first in range(0, len(collected), _JOB_CHUNKS):
            leaving = tuple(collected[first : first + _JOB_CHUNKS])
            if self._jobs >= _MOST_JOBS:
                self._metrics.l2_demotions_lost += len(leaving)
                continue
            self._jobs += 1
            job = DemoteJob(self._pool.next_number(), leaving)
            self._pool.submit(job, DEMOTE, self._answered)

    def _answered(self, answer: Answer) -> None:
        self._jobs -= 1
