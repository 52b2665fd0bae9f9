"""A model at work: whatever gives it one, it ranks slots by it; while there is none it is LRU.

Candidates are drawn in turn and scored in batches; what is not given up stays in a pool with its
score until it is used.
"""

from __future__ import annotations

import numpy as np

from cachefs.policy.evict.lru import Lru
from cachefs.policy.evict.ml.memory import Features, Memory
from cachefs.policy.evict.ml.models import Model, Scores
from cachefs.policy.evict.ml.round import Round
from cachefs.policy.evict.ml.rows import Times, costs
from cachefs.policy.evict.order import Ticks
from cachefs.policy.evict.seam import UNKNOWN, Arrival, Keep, Slots

_MOST_LOG = 1024
_BATCH = 32
"""Evictions from one scoring, at most."""
_BATCH_SHARE = 16
"""And at most that part of the slots."""
_CANDIDATES = 512
_CANDIDATE_SHARE = 2
_POOL = 512
_MOST_EXACT = 1 << 20
"""Over so many slots LRU is by candidates too: an exact one has to look at all of them now and
then, which takes a tenth of a second for 16 million."""
_MOST_IN_VAIN = 2
"""Rankings in a row all of whose slots have to stay."""


class Ranker(Lru):
    """See EvictionPolicy."""

    def __init__(self, ticks: Ticks, seed: int, memory: Memory) -> None:
        super().__init__(ticks)
        self.model: Model | None = None
        self.memory = memory
        self._log: list[int] = []
        """Slots in the order of their uses; those below zero are ~slot of what came in."""
        self._left: list[int] = []
        self._arrived: list[tuple[int, Arrival]] = []
        """What came into slots and left them, of which the memory does not know yet."""
        self._digested = 0
        """The tick up to which it knows all."""
        self._round = Round(seed)
        self._ranked: list[tuple[int, int]] = []
        """Slots and stamps, the best to give up last."""
        self._pool = np.zeros(0, np.int64)
        self._pool_stamps = np.zeros(0, np.uint32)
        self._pool_losses = np.zeros(0)
        """What giving each up is likely to cost: the chance that it is wanted soon, times what a
        fetch takes. By LRU: when it was used."""

    def insert(self, slot: int, arrival: Arrival = UNKNOWN) -> None:
        """See EvictionPolicy."""
        super().insert(slot)
        self._arrived.append((slot, arrival))
        if not arrival.is_prefetched:
            self._log.append(~slot)
        if len(self._log) >= _MOST_LOG:
            self._digest()

    def insert_many(self, slots: Slots) -> None:
        """See EvictionPolicy."""
        self._digest()
        super().insert_many(slots)
        self.memory.arrive_many(slots)

    def touch(self, slot: int) -> None:
        """See EvictionPolicy."""
        self.touch_many(np.array([slot]))

    def touch_many(self, slots: Slots) -> None:
        """See EvictionPolicy."""
        self._log.extend(self._renewed(slots).tolist())
        if len(self._log) >= _MOST_LOG:
            self._digest()

    def renew_many(self, slots: Slots) -> None:
        """See EvictionPolicy."""
        self.memory.renew(self._renewed(slots))

    def evict(self, count: int, keep: Keep) -> list[int]:
        """See EvictionPolicy."""
        if self._is_lru() and len(self._used.stamps) <= _MOST_EXACT:
            return self._oldest(count, keep)
        chosen: list[int] = []
        in_vain = 0
        stamps = self._used.stamps
        while len(chosen) < count and in_vain <= _MOST_IN_VAIN:
            if not self._ranked:
                in_vain += 1
                self._rank()
            while self._ranked and len(chosen) < count:
                slot, stamp = self._ranked.pop()
                if stamps[slot] == stamp and not keep(slot):
                    self._leave(slot)  # now: the next ranking must not find it again
                    chosen.append(slot)
                    in_vain = 0
        if len(chosen) < count:  # nearly all are kept: whatever may go
            chosen += self._oldest(count - len(chosen), keep)
        return chosen

    def remove(self, slot: int) -> None:
        """See EvictionPolicy."""
        if self.holds(slot):
            self._leave(slot)

    def follow(self, model: Model | None) -> None:
        """Rank by this model from now on."""
        self.model = model
        self._forget_pool()

    def _is_lru(self) -> bool:
        """Whether the least recently used goes, and not what a model says."""
        return self.model is None

    def _forget_pool(self) -> None:
        """Its losses are another ruler's."""
        self._pool = self._pool[:0]
        self._pool_stamps, self._pool_losses = self._pool_stamps[:0], self._pool_losses[:0]
        self._ranked.clear()

    def _oldest(self, count: int, keep: Keep) -> list[int]:
        """Choose the least recently used."""
        oldest = self._used.oldest()
        if oldest is not None and (count > 1 or oldest[1] > self._digested):
            self._digest()  # as `_leave` would: their stamps are gone then
        chosen = self._used.pop_many(count, keep)
        for slot in chosen:
            self._leave(slot)
        return chosen

    def _leave(self, slot: int) -> None:
        """A slot is empty from now on."""
        if self._used.stamps[slot] > self._digested:
            self._digest()  # else its uses would be taken for those of the next chunk in it
        self._used.discard(slot)
        self._left.append(slot)

    def _digest(self) -> None:
        """Take in what happened since the last time: in this order it is as it was."""
        self._digested = self._ticks.now
        if self._left:
            left = np.array(self._left, np.int64)
            self._left.clear()
            self._take_leaves(left)
            self.memory.leave(left)
        if self._arrived:
            slots = np.array([slot for slot, _ in self._arrived], np.int64)
            arrivals = [arrival for _, arrival in self._arrived]
            self._arrived.clear()
            self.memory.arrive(slots, arrivals)
            self._take_arrivals(slots, arrivals)
        if self._log:
            log = np.array(self._log, np.int64)
            self._log.clear()
            is_new = log < 0
            self._take_uses(np.where(is_new, ~log, log), ~is_new)

    def _take_leaves(self, slots: Slots) -> None:
        """These are given up; the memory still has them."""

    def _take_arrivals(self, slots: Slots, arrivals: list[Arrival]) -> None:
        """These came in."""

    def _take_uses(self, used: Slots, is_hit: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> None:
        """These were used, in this order."""
        self.memory.digest(used, self._times(len(used)))

    def _times(self, count: int) -> Times:
        """Return when the last `count` uses were."""
        return np.arange(self.memory.now, self.memory.now + count)

    def _score(self, features: Features) -> Scores:
        if self.model is None:
            return np.full(len(features), np.nan, np.float32)
        return self.model.score(features)

    def _rank(self) -> None:
        """Score new candidates, and find the best of them and of the pool."""
        self._digest()
        view = self._used.view()
        drawn = self._round.draw(min(_CANDIDATES, len(view) // _CANDIDATE_SHARE + 1), len(view))
        fresh = drawn[view[drawn] != 0]
        living = (view[self._pool] == self._pool_stamps) & ~self._round.was_drawn(self._pool)
        if self._is_lru():
            loss = view[fresh].astype(np.float64)
        else:
            features = self.memory.features(fresh)
            scores = self._score(features)
            self._take_scores(fresh, features, scores)
            loss = (1 - scores) * costs(self.memory.slots[fresh]).astype(np.float64)
        slots = np.concatenate((fresh, self._pool[living]))
        losses = np.concatenate((loss, self._pool_losses[living]))
        order = np.argsort(losses, kind="stable")
        most = min(len(slots) // 8, self._used.count // _BATCH_SHARE, _BATCH)
        best = max(1, most)
        chosen = slots[order[:best]][::-1]
        self._ranked = list(zip(chosen.tolist(), view[chosen].tolist(), strict=True))
        rest = order[best : best + _POOL]
        self._pool, self._pool_losses = slots[rest], losses[rest]
        self._pool_stamps = view[self._pool]

    def _take_scores(self, slots: Slots, features: Features, scores: Scores) -> None:
        """Candidates were scored."""
