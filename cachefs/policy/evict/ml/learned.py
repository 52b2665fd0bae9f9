"""The policy that learns.

Candidates are drawn at random, with a few of the least recently used, and scored in batches; what
is not given up stays in a pool with its score until it is used. A chunk that is looked at becomes a
sample, now and then; samples with answers make the next model, which somebody else trains: the
owner asks for the work (`training`), does it where it wants, and brings the result (`adopt`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt

from cachefs.policy.evict.lru import Lru
from cachefs.policy.evict.ml.guard import EXPERTS, MODEL, Guard
from cachefs.policy.evict.ml.memory import Features, Memory
from cachefs.policy.evict.ml.models import Logistic, Model, Scores, Trees, soft_labels
from cachefs.policy.evict.ml.samples import Samples
from cachefs.policy.evict.ml.saved import Saved
from cachefs.policy.evict.order import Ticks
from cachefs.policy.evict.seam import UNKNOWN, Arrival, Keep, Slots

_MOST_LOG = 1024
_BATCH = 32
"""Evictions from one scoring, at most."""
_CANDIDATES = 512
_TAIL = 24
"""Of the candidates that many are the least recently used."""
_POOL = 512
_SAMPLES_PER_USE = 1 / 8
_SAMPLES_AT_ONCE = 24
_SAMPLES_PER_RANKING = 8
_FIRST_TRAINING = 512
_TRAINING_INTERVAL = 16_384
_YOUNG = 4
"""Models so early are from few samples, and the next one comes soon."""
_HORIZON = 2.0
"""A sample is waited for so many times the boundary."""

Training = Callable[[], Model]


class Learned(Lru):
    """See EvictionPolicy; while there is no model it is LRU."""

    def __init__(self, ticks: Ticks, seed: int = 0, model: type[Trees | Logistic] = Trees) -> None:
        super().__init__(ticks)
        self.model: Model | None = None
        self.trainings = 0
        self.memory = Memory()
        self.samples = Samples()
        self.guard: Guard | None = None
        self._kind = model
        self._rng = np.random.default_rng(seed)
        self._log: list[int] = []
        """Slots in the order of their uses; those below zero are ~slot of what came in."""
        self._left: list[int] = []
        self._arrived: list[tuple[int, Arrival]] = []
        """What came into slots and left them, of which the memory does not know yet."""
        self._digested = 0
        """The tick up to which it knows all."""
        self._due = 0.0
        self._next_training = _FIRST_TRAINING
        self._is_training = False
        self._boundary = 64.0
        """How long chunks live here without being used, in uses: decayed mean at eviction."""
        self._ranked: list[tuple[int, int]] = []
        """Slots and stamps, the best to give up last."""
        self._pool = np.zeros(0, np.int64)
        self._pool_stamps = np.zeros(0, np.uint32)
        self._pool_scores = np.zeros(0, np.float32)
        self._expert: Lru | None = None
        """Who rules instead of the model, told of everything while it does."""

    def grow(self, slots: int) -> None:
        """See EvictionPolicy."""
        super().grow(slots)
        self.memory.grow(slots)
        self.samples.grow(slots)
        self._boundary = max(self._boundary, 2.0 * slots)
        if self.guard is None or slots >= 2 * self.guard.slots:
            self.guard = Guard(slots)
        if self._expert is not None:
            self._expert.grow(slots)

    def insert(self, slot: int, arrival: Arrival = UNKNOWN) -> None:
        """See EvictionPolicy."""
        super().insert(slot)
        self._arrived.append((slot, arrival))
        if not arrival.is_prefetched:
            self._log.append(~slot)
        if self._expert is not None:
            self._expert.insert(slot, arrival)
        if len(self._log) >= _MOST_LOG:
            self._digest()

    def insert_many(self, slots: Slots) -> None:
        """See EvictionPolicy."""
        self._digest()
        super().insert_many(slots)
        self.memory.arrive_many(slots)
        if self._expert is not None:
            self._expert.insert_many(slots)

    def touch(self, slot: int) -> None:
        """See EvictionPolicy."""
        self.touch_many(np.array([slot]))

    def touch_many(self, slots: Slots) -> None:
        """See EvictionPolicy."""
        living = self._renewed(slots)
        self._log.extend(living.tolist())
        if self._expert is not None:
            self._expert.touch_many(living)
        if len(self._log) >= _MOST_LOG:
            self._digest()

    def evict(self, count: int, keep: Keep) -> list[int]:
        """See EvictionPolicy."""
        if self._expert is not None:
            chosen = self._expert.evict(count, keep)
            for slot in chosen:
                self._leave(slot)
        elif self.model is None:
            chosen = self._oldest(count, keep)
        else:
            chosen = self._evict_ranked(count, keep)
        return chosen

    def remove(self, slot: int) -> None:
        """See EvictionPolicy."""
        if self.holds(slot):
            self._leave(slot)

    def close(self) -> None:
        """See EvictionPolicy."""
        super().close()
        if self._expert is not None:
            self._expert.close()

    def training(self) -> Training | None:
        """Return work to be done anywhere, whose result `adopt` wants; None if there is none."""
        if self._is_training or self.samples.labelled < self._next_training:
            return None
        self._is_training = True
        features, after = self.samples.training_set()
        labels = soft_labels(after, self._boundary)
        return partial(self._kind.train, features, labels, self.model, self.trainings)

    def adopt(self, model: Model | None) -> None:
        """Take a model that was trained (None: that failed, try again later), or loaded."""
        self._is_training = False
        known = self.samples.labelled
        self._next_training = known + min(_TRAINING_INTERVAL, max(_FIRST_TRAINING, known // 2))
        if model is not None:
            self.model = model
            self.trainings += 1
            if self.guard is not None and self.trainings <= _YOUNG and self._expert is None:
                self.guard.begin(MODEL)  # what a younger one lost says little of this one
            self._pool = self._pool[:0]  # its scores are another model's
            self._pool_stamps, self._pool_scores = self._pool_stamps[:0], self._pool_scores[:0]
            self._ranked.clear()

    def _leave(self, slot: int) -> None:
        """A slot is empty from now on."""
        if self._used.stamps[slot] > self._digested:
            self._digest()  # else its uses would be taken for those of the next chunk in it
        self._used.discard(slot)
        self._left.append(slot)
        if self._expert is not None:  # which may be new since the slot was chosen
            self._expert.remove(slot)

    def _digest(self) -> None:
        """Take in what happened since the last time: in this order it is as it was."""
        self._digested = self._ticks.now
        if self._left:
            self._digest_left(np.array(self._left, np.int64))
            self._left.clear()
        if self._arrived:
            slots = [slot for slot, _ in self._arrived]
            arrivals = [arrival for _, arrival in self._arrived]
            self.memory.arrive(np.array(slots, np.int64), arrivals)
            self.samples.arrived(slots, [arrival.key for arrival in arrivals])
            self._arrived.clear()
        if self._log:
            self._digest_uses(np.array(self._log, np.int64))
            self._log.clear()

    def _digest_left(self, left: Slots) -> None:
        rows = self.memory.slots[left]
        ages = self.memory.now - rows["last"]
        keep = 0.998 ** len(left)
        mean = self._boundary * keep + (1 - keep) * float(ages.mean())
        self._boundary = max(mean, self._used.count / 2, 16.0)
        self.samples.left(left, rows["key"])
        self.memory.leave(left)

    def _digest_uses(self, log: Slots) -> None:
        is_new = log < 0
        used = np.where(is_new, ~log, log)
        self._tell_guard(used, is_new)
        slots, when = self.memory.digest(used)
        self.samples.used(slots, when, self._boundary)
        self._due += len(log) * _SAMPLES_PER_USE
        if self._due >= _SAMPLES_AT_ONCE:
            self._sample()

    def _tell_guard(self, used: Slots, is_new: npt.NDArray[np.bool_]) -> None:
        guard = self.guard
        if guard is None:
            return
        keys = self.memory.slots["key"][used]
        if guard.rate > 1:
            sampled = guard.sampled(keys)
            keys, is_new = keys[sampled], is_new[sampled]
        for key, new in zip(keys.tolist(), is_new.tolist(), strict=True):
            if key:
                guard.used(key, not new)
        before = guard.ruler
        if self.model is not None and guard.decide() != before:
            self._follow(guard.ruler)

    def _follow(self, ruler: str) -> None:
        """Let an expert rule, or the model again."""
        if self._expert is not None:
            self._expert.close()
            self._expert = None
        if ruler != MODEL:
            expert = EXPERTS[ruler](self._ticks)
            stamps = self.snapshot()
            expert.grow(len(stamps))
            occupied = np.flatnonzero(stamps)
            expert.insert_many(occupied[np.argsort(stamps[occupied], kind="stable")])
            self._expert = expert

    def _sample(self) -> None:
        """Take samples of chunks that are here, whether or not anything is to be given up."""
        slots = self._draw(int(self._due))
        self._due = 0.0
        slots = slots[self.samples.is_free(slots)]
        self.samples.expire(self.memory.now, _HORIZON * self._boundary, self._boundary)
        if len(slots):
            features = self.memory.features(slots)
            self.samples.add(slots, features, self._score(features), self.memory.now)

    def _draw(self, count: int) -> Slots:
        """Return up to `count` occupied slots, each once."""
        view = self._used.view()
        drawn = np.unique(self._rng.integers(0, len(view), count))
        return np.asarray(drawn[view[drawn] != 0], np.int64)

    def _score(self, features: Features) -> Scores:
        if self.model is None:
            return np.full(len(features), np.nan, np.float32)
        return self.model.score(features)

    def _evict_ranked(self, count: int, keep: Keep) -> list[int]:
        chosen: list[int] = []
        rankings = 0
        stamps = self._used.stamps
        while len(chosen) < count:
            if not self._ranked:
                rankings += 1
                if rankings > 1 + count // 8:
                    break
                self._rank()
            while self._ranked and len(chosen) < count:
                slot, stamp = self._ranked.pop()
                if stamps[slot] == stamp and not keep(slot):
                    self._leave(slot)  # now: the next ranking must not find it again
                    chosen.append(slot)
        if len(chosen) < count:  # nearly all are kept: whatever may go
            chosen += self._oldest(count - len(chosen), keep)
        return chosen

    def _oldest(self, count: int, keep: Keep) -> list[int]:
        """Choose the least recently used."""
        oldest = self._used.oldest()
        if oldest is not None and (count > 1 or oldest[1] > self._digested):
            self._digest()  # as `_leave` would: their stamps are gone then
        chosen = self._used.pop_many(count, keep)
        for slot in chosen:
            self._leave(slot)
        return chosen

    def saved(self) -> Saved | None:
        """Return what a restart wants of this, None while nothing is learned."""
        if self.model is None:
            return None
        ruler = MODEL if self.guard is None else self.guard.ruler
        return Saved(self.model, self._boundary, ruler, self.trainings)

    def take_over(self, saved: Saved) -> None:
        """Go on from what was saved, here or elsewhere."""
        self.adopt(saved.model)
        self.trainings = saved.trainings
        if saved.ruler in EXPERTS and self.guard is not None:
            self.guard.begin(saved.ruler)
            self._follow(saved.ruler)

    def reset(self) -> None:
        """Forget the model; samples and what is known of chunks stay, and make the next one."""
        self.model = None
        self.trainings = 0
        self._next_training = self.samples.labelled + _FIRST_TRAINING
        self._ranked.clear()
        if self.guard is not None:
            self.guard.begin(MODEL)
        self._follow(MODEL)

    def what_it_does(self) -> dict[str, object]:
        """Return figures for people and programs."""
        judged = max(self.samples.judged, 1.0)
        soon = self.samples.soon / judged
        guard = self.guard
        return {
            "model": self.model.name if self.model is not None else None,
            "ruler": guard.ruler if guard is not None else MODEL,
            "trainings": self.trainings,
            "labelled_samples": self.samples.labelled,
            "accuracy": round(self.samples.right / judged, 4),
            "majority_share": round(max(soon, 1 - soon), 4),
            "regret": {} if guard is None else guard.regret(),
        }

    def _rank(self) -> None:
        """Score new candidates, and find the best of them and of the pool."""
        self._digest()
        view = self._used.view()
        fresh = np.union1d(self._draw(_CANDIDATES), self._used.peek_many(_TAIL))
        living = view[self._pool] == self._pool_stamps
        living &= ~np.isin(self._pool, fresh)
        features = self.memory.features(fresh)
        scores = self._score(features)
        taken = self._rng.permutation(len(fresh))[:_SAMPLES_PER_RANKING]
        taken = taken[self.samples.is_free(fresh[taken])]
        self.samples.add(fresh[taken], features[taken], scores[taken], self.memory.now)
        slots = np.concatenate((fresh, self._pool[living]))
        scores = np.concatenate((scores, self._pool_scores[living]))
        order = np.argsort(-scores, kind="stable")
        best = min(_BATCH, max(1, len(slots) // 8), max(1, self._used.count // 16))
        chosen = slots[order[:best]][::-1]
        self._ranked = list(zip(chosen.tolist(), view[chosen].tolist(), strict=True))
        rest = order[best : best + _POOL]
        self._pool, self._pool_scores = slots[rest], scores[rest]
        self._pool_stamps = view[self._pool]
