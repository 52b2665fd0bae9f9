"""One replay: a recording, a size, a policy; and the bounds, LRU and Belady's MIN."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cachefs.policy.evict.ml.learned import Learned
from cachefs.policy.evict.seam import Arrival, EvictionPolicy
from cachefs.simulate.accesses import SPAN, Accesses, Numbers, place_of

_MOST_PENDING = 512
"""Hits are told in batches, as the daemon does it; at the latest before the next eviction."""

_PROGRESS_EVERY = 16_384


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a replay showed."""

    accesses: int
    misses: int

    @property
    def miss_ratio(self) -> float:
        """Misses / accesses."""
        return self.misses / self.accesses


def replay(
    accesses: Accesses,
    slots: int,
    policy: EvictionPolicy,
    progress: Callable[[int], None] = lambda _: None,
) -> Outcome:
    """Replay accesses through a policy over an L1 of `slots` slots; it evicts one by one.

    `progress` is told now and then how many accesses are done.
    """
    policy.grow(slots)
    slot_of = [-1] * accesses.distinct
    chunk_in = [-1] * slots
    free = list(range(slots - 1, -1, -1))
    arrivals = [
        Arrival(key=number + 1, place=place_of(index), span=SPAN)
        for number, index in enumerate(accesses.index.tolist())
    ]
    pending: list[int] = []
    learner = policy if isinstance(policy, Learned) else None
    misses = 0
    for done, chunk in enumerate(accesses.chunks.tolist()):
        slot = slot_of[chunk]
        if slot >= 0:
            pending.append(slot)
            if len(pending) < _MOST_PENDING:
                continue
        if pending:
            policy.touch_many(np.array(pending, np.int64))
            pending.clear()
        if slot >= 0:
            continue
        if not misses % _PROGRESS_EVERY:
            progress(done)
        misses += 1
        if learner is not None and (work := learner.training()) is not None:
            learner.adopt(work())
        if not free:
            for victim in policy.evict(1, _keep_none):
                slot_of[chunk_in[victim]] = -1
                free.append(victim)
        slot = free.pop()
        slot_of[chunk], chunk_in[slot] = slot, chunk
        policy.insert(slot, arrivals[chunk])
    progress(len(accesses))
    return Outcome(len(accesses), misses)


def next_uses(chunks: Numbers) -> Numbers:
    """Return for each access when its chunk is wanted next: an index, or the number of accesses."""
    count = len(chunks)
    order = np.argsort(chunks, kind="stable")
    following = np.full(count, count, np.int64)
    same = chunks[order[1:]] == chunks[order[:-1]]
    following[order[:-1][same]] = order[1:][same]
    return following


def belady(accesses: Accesses, slots: int) -> Outcome:
    """Replay with Belady's MIN (1966): give up what is wanted again last. Nothing is better."""
    following = next_uses(accesses.chunks).tolist()
    wanted_at = [-1] * accesses.distinct
    heap: list[tuple[int, int]] = []
    held = misses = 0
    for chunk, after in zip(accesses.chunks.tolist(), following, strict=True):
        if wanted_at[chunk] < 0:
            misses += 1
            while held >= slots:
                at, victim = heapq.heappop(heap)
                if wanted_at[victim] == -at:
                    wanted_at[victim] = -1
                    held -= 1
            held += 1
        wanted_at[chunk] = after
        heapq.heappush(heap, (-after, chunk))
    return Outcome(len(accesses), misses)


def gap_closed(lru: Outcome, found: Outcome, best: Outcome) -> float:
    """Return how much of the way from LRU to Belady's MIN a policy goes, in percent."""
    gap = lru.misses - best.misses
    return 100 * (lru.misses - found.misses) / gap if gap else 0.0


def _keep_none(_: int) -> bool:
    return False
