"""The policy that learns.

A chunk that is looked at becomes a sample, now and then; samples with answers make the next model,
which somebody else trains: the owner asks for the work (`training`), does it where it wants, and
brings the result (`adopt`). The guard says whether the model rules or a policy of the literature.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cachefs.policy.evict.lru import Lru
from cachefs.policy.evict.ml.guard import EXPERTS, FIRST, MODEL, Guard
from cachefs.policy.evict.ml.memory import Features, Memory
from cachefs.policy.evict.ml.models import Logistic, Model, Scores, Trees, soft_labels
from cachefs.policy.evict.ml.past import Past
from cachefs.policy.evict.ml.places import Places
from cachefs.policy.evict.ml.ranker import Ranker
from cachefs.policy.evict.ml.round import Round
from cachefs.policy.evict.ml.rows import Rows, places
from cachefs.policy.evict.ml.samples import Samples
from cachefs.policy.evict.ml.saved import OWN, STORE, Saved
from cachefs.policy.evict.order import Ticks
from cachefs.policy.evict.seam import UNKNOWN, Arrival, Keep, Slots

_SAMPLES_PER_USE = 1 / 8
_SAMPLES_AT_ONCE = 64
_SAMPLES_PER_RANKING = 8
_FIRST_TRAINING = 512
_TRAINING_INTERVAL = 16_384
_HORIZON = 2.0
"""A sample is waited for so many times the boundary."""


class Training(NamedTuple):
    """Work to be done anywhere: call it, or take it apart and do it elsewhere."""

    kind: type[Trees | Logistic]
    features: Features
    labels: Scores
    before: Model | None
    seed: int

    def __call__(self) -> Model:
        """Return the model."""
        return self.kind.train(self.features, self.labels, self.before, self.seed)


class Learned(Ranker):
    """See EvictionPolicy."""

    def __init__(
        self,
        ticks: Ticks,
        seed: int = 0,
        model: type[Trees | Logistic] = Trees,
        *,
        most_slots: int = 0,
    ) -> None:
        super().__init__(ticks, seed, Memory(Past(), Places()))
        self.trainings = 0
        self.origin = OWN
        """Where the model comes from."""
        self.samples = Samples()
        self.guard = Guard(most_slots, self.memory, seed)
        self.kind = model
        """Of the models to come."""
        self._seed = seed
        self._due = 0.0
        self._sampling = Round(seed + 1)
        self._next_training = _FIRST_TRAINING
        self._is_training = False
        self._boundary = 64.0
        """How long chunks live here without being used, in uses: decayed mean at eviction."""
        self._expert: Lru | None = None
        """Who rules instead of the model, told of everything while it does. None for LRU too:
        that is what a ranker without a model does."""

    def grow(self, slots: int) -> None:
        """See EvictionPolicy."""
        super().grow(slots)
        self.memory.grow(slots, slots)
        self.samples.grow(slots)
        self._boundary = max(self._boundary, 2.0 * slots)
        if slots > self.guard.slots:
            self.guard = self.guard.resized(slots)
        if self._expert is not None:
            self._expert.grow(slots)

    def insert(self, slot: int, arrival: Arrival = UNKNOWN) -> None:
        """See EvictionPolicy."""
        super().insert(slot, arrival)
        if self._expert is not None:
            self._expert.insert(slot, arrival)

    def insert_many(self, slots: Slots) -> None:
        """See EvictionPolicy."""
        super().insert_many(slots)
        if self._expert is not None:
            self._expert.insert_many(slots)

    def touch_many(self, slots: Slots) -> None:
        """See EvictionPolicy."""
        super().touch_many(slots)
        if self._expert is not None:
            self._expert.touch_many(slots)

    def renew_many(self, slots: Slots) -> None:
        """See EvictionPolicy."""
        super().renew_many(slots)
        if self._expert is not None:
            self._expert.touch_many(slots)

    def evict(self, count: int, keep: Keep) -> list[int]:
        """See EvictionPolicy."""
        held = self._used.count
        if abs(held - self.guard.slots) > self.guard.slots >> 5:
            self.guard = self.guard.resized(held)
        if self._expert is not None:
            chosen = self._expert.evict(count, keep)
            for slot in chosen:
                self._leave(slot)
            return chosen
        return super().evict(count, keep)

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
        return Training(self.kind, features, labels, self.model, self.trainings)

    def learn_by(self, kind: type[Trees | Logistic]) -> None:
        """Train other models from now on, the first at once: what was under way is not to come."""
        self.kind = kind
        self._is_training = False
        self._next_training = self.samples.labelled

    def adopt(self, model: Model | None) -> None:
        """Take a model that was trained (None: that failed, try again later), or loaded."""
        self._is_training = False
        known = self.samples.labelled
        self._next_training = known + min(_TRAINING_INTERVAL, max(_FIRST_TRAINING, known // 2))
        if model is not None:
            self.trainings += 1
            self.origin = OWN
            self._follow_model(model)

    def saved(self) -> Saved | None:
        """Return what a restart wants of this, None while nothing is learned."""
        if self.model is None:
            return None
        return Saved(self.model, self._boundary, self.guard.ruler, self.trainings, self.origin)

    def take_over(self, saved: Saved) -> None:
        """Go on from what was saved, here or elsewhere.

        A model of the store has proved itself on another host: here it has to do so again.
        """
        self.adopt(saved.model)
        self.trainings = saved.trainings
        self.origin = saved.origin
        if saved.origin != STORE and saved.ruler in (MODEL, *EXPERTS):
            self._digest()
            self.guard.begin(saved.ruler, self._held_rows)
            self._obey(saved.ruler)

    def reset(self) -> None:
        """Forget the model; samples and what is known of chunks stay, and make the next one."""
        self._digest()
        self.trainings = 0
        self.origin = OWN
        self._next_training = self.samples.labelled + _FIRST_TRAINING
        self._follow_model(None)
        self.guard.begin(FIRST, self._held_rows)
        self._obey(FIRST)

    def what_it_does(self) -> dict[str, object]:
        """Return figures for people and programs."""
        judged = max(self.samples.judged, 1.0)
        soon = self.samples.soon / judged
        return {
            "model": self.model.name if self.model is not None else None,
            "origin": self.origin if self.model is not None else None,
            "ruler": self.guard.ruler,
            "changes_of_ruler": self.guard.changes,
            "trainings": self.trainings,
            "labelled_samples": self.samples.labelled,
            "accuracy": round(self.samples.right / judged, 4),
            "majority_share": round(max(soon, 1 - soon), 4),
            "regret": self.guard.regret(),
        }

    def _follow_model(self, model: Model | None) -> None:
        self.follow(model)
        self.guard.follow(model)

    def _held_rows(self) -> Rows:
        """Return what is known of the chunks that are here, least recently used first."""
        self._digest()
        stamps = self._used.view()
        slots = np.flatnonzero(stamps)
        return self.memory.slots[slots[np.argsort(stamps[slots], kind="stable")]]

    def _is_lru(self) -> bool:
        return self.model is None or self.guard.ruler == FIRST

    def _obey(self, ruler: str) -> None:
        """Let the model choose from now on, or a policy of the literature."""
        self._forget_pool()
        if self._expert is not None:
            self._expert.close()
            self._expert = None
        if ruler not in (MODEL, FIRST):
            expert = EXPERTS[ruler](self._ticks)
            self._digest()
            share = self.guard.main_share(ruler)
            expert.inherit(self.snapshot(), self.memory.slots["key"], share)
            self._expert = expert

    def _leave(self, slot: int) -> None:
        super()._leave(slot)
        if self._expert is not None:  # which may be new since the slot was chosen
            self._expert.remove(slot)

    def _take_leaves(self, slots: Slots) -> None:
        rows = self.memory.slots[slots]
        ages = self.memory.ages(rows)
        keep = 0.998 ** len(slots)
        mean = self._boundary * keep + (1 - keep) * float(ages.mean())
        self._boundary = max(mean, self._used.count / 2, 16.0)
        self.samples.left(slots, rows["key"])

    def _take_arrivals(self, slots: Slots, arrivals: list[Arrival]) -> None:
        self.samples.arrived(slots.tolist(), [arrival.key for arrival in arrivals])

    def _take_uses(self, used: Slots, is_hit: npt.NDArray[np.bool_]) -> None:
        times = self._times(len(used))
        rows = self.memory.slots[used]
        self.guard.take(rows, times, is_hit)
        slots, when = self.memory.digest(used, times)
        self.memory.places.used(places(rows), times)
        self.samples.used(slots, when, self._boundary)
        self._due += len(used) * _SAMPLES_PER_USE
        if self._due >= min(_SAMPLES_AT_ONCE, 8 + self._used.count // 8):
            self._sample()
        before = self.guard.ruler
        if self.guard.decide(self._held_rows) != before:
            self._obey(self.guard.ruler)

    def _sample(self) -> None:
        """Take samples of chunks that are here, whether or not anything is to be given up."""
        slots = self._sampling.draw(int(self._due), len(self._used.stamps))
        self._due = 0.0
        slots = slots[(self._used.view()[slots] != 0) & self.samples.is_free(slots)]
        self.samples.expire(self.memory.now, _HORIZON * self._boundary, self._boundary)
        if len(slots):
            features = self.memory.features(slots)
            self.samples.add(slots, features, self._score(features), self.memory.now)

    def _take_scores(self, slots: Slots, features: Features, scores: Scores) -> None:
        taken = np.flatnonzero(self.samples.is_free(slots[:_SAMPLES_PER_RANKING]))
        self.samples.add(slots[taken], features[taken], scores[taken], self.memory.now)
