"""The guard: who chooses what L1 gives up, the model or a policy of the literature.

Beside L1 run shadows: small caches that see a sample of all chunks, by their keys, and are as much
smaller as the sample is (Waldspurger et al., SHARDS, FAST'15). All of them, the model's own among
them, see the same sample, so that what is peculiar to it cancels out. Where L1 is small everything
is in the sample, and while the model rules its shadow is L1 itself.

LRU begins. The model rules once its shadow is ahead, and until another is ahead of it by more than
chance makes it, or L1 has lost against LRU what it may lose at all. Each time that it is deposed it
has to prove more. A lead is a sum over blocks of uses, and its variance the sum of their squares,
which allows for runs of equal luck.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from cachefs.policy.evict.lru import Lru
from cachefs.policy.evict.ml.memory import Memory
from cachefs.policy.evict.ml.model_shadow import ModelShadow
from cachefs.policy.evict.ml.models import Model
from cachefs.policy.evict.ml.rows import Rows, Times
from cachefs.policy.evict.ml.shadows import SHADOWS
from cachefs.policy.evict.order import Ticks
from cachefs.policy.evict.s3fifo import S3Fifo
from cachefs.policy.evict.twoq import TwoQ

EXPERTS: dict[str, Callable[[Ticks], Lru]] = {"lru": Lru, "2q": TwoQ, "s3fifo": S3Fifo}
FIRST = "lru"
MODEL = "model"
_LAG = "lag"
_COMPARED = (*EXPERTS, MODEL, _LAG)
"""Each is compared with the shadow of the ruler; the lag is that of L1 behind the shadow of LRU."""

_ALL_SLOTS = 4096
"""Up to so many slots everything is in the sample."""
_SHADOW_SLOTS = 1024
"""Of a shadow at least, where it is not."""
_BLOCK = 128
"""Sampled uses."""
_LEAST_BLOCKS = 4
_MEMORY_BLOCKS = 256
_CAUTION = 4.0
"""Standard deviations by which another has to be ahead of the ruler."""
_LEAST_LEAD = 0.01
"""And by that part of all uses."""
_MOST_LOSS = 0.004
"""The part of all uses that L1 may miss more than LRU, over all its time, before the model goes."""
_LEAST_BLOCKS_OF_L1 = 16
"""L1 is another after so many, whoever ruled before."""
_MOST_LAG = 0.02
"""The part of all uses by which L1 may miss more than LRU, lately, whatever the shadows say."""
_BARRED_BLOCKS = 256
"""For whom L1 did not do what its shadow did; twice as long each time."""
_MIX = np.uint64(0x9E3779B97F4A7C15)

Hits = npt.NDArray[np.bool_]


class Guard:
    """Compares, and says who rules."""

    def __init__(self, slots: int, whole: Memory, seed: int) -> None:
        self.ruler = FIRST
        self.slots = slots
        self.rate = _rate(slots)
        self.changes = 0
        self._deposed = 0
        """How often the model was."""
        self._barred = dict.fromkeys(_COMPARED, 0)
        self._bar = _BARRED_BLOCKS
        self._saved = 0.0
        """Sampled uses that the rulers had and LRU had not, since the start."""
        self._seen = 0.0
        self._whole = whole
        self._seed = seed
        self._model: Model | None = None
        self._of_model: ModelShadow | None = self._new_shadow()
        self._shadows = {name: make(self.shadow_slots) for name, make in SHADOWS.items()}
        self._uses = 0
        self._block = dict.fromkeys(_COMPARED, 0)
        self._forget()

    @property
    def shadow_slots(self) -> int:
        """How many slots a shadow has."""
        return max(1, self.slots // self.rate)

    def resized(self, slots: int) -> Guard:
        """Return the guard of so many slots, which is this one if it can be."""
        rate = _rate(slots)
        if rate != self.rate:
            other = Guard(slots, self._whole, self._seed)
            other.ruler, other.changes = self.ruler, self.changes
            other.follow(self._model)
            return other
        self.slots = slots
        for shadow in self._shadows.values():
            shadow.resize(self.shadow_slots)
        if self._of_model is not None:
            self._of_model.resize(self.shadow_slots, slots)
        return self

    def sampled(self, keys: npt.NDArray[np.uint64]) -> Hits:
        """Return which chunks are in the sample."""
        return np.asarray((keys * _MIX >> np.uint64(13)) % np.uint64(self.rate) == 0)

    def follow(self, model: Model | None) -> None:
        """There is a new model; None: the old one is forgotten."""
        self._model = model
        if self.ruler != MODEL:  # what an old one lost says little of the new one
            self._lead[MODEL] = self._spread[MODEL] = self._blocks[MODEL] = 0.0
        if self._of_model is not None:
            self._of_model.follow(model)

    def take(self, rows: Rows, times: Times, hits: Hits) -> None:
        """Chunks were wanted; L1 had them or not. Rows without a key say nothing."""
        known = rows["key"] != 0
        if self.rate > 1:
            known &= self.sampled(rows["key"])
        if not known.all():
            rows, times, hits = rows[known], times[known], hits[known]
        if not len(rows):
            return
        keys = rows["key"].tolist()
        found = {name: np.array(shadow.use_many(keys)) for name, shadow in self._shadows.items()}
        shadow = self._of_model
        found[MODEL] = hits if shadow is None else np.array(shadow.use_many(rows, times))
        # What was prefetched would be there whoever rules.
        counts = ~rows["is_unused"]
        ours = found[self.ruler] & counts
        for name, theirs in found.items():
            self._block[name] += int((theirs & counts).sum()) - int(ours.sum())
        of_lru = int((found[FIRST] & counts).sum())
        self._saved += int(ours.sum()) - of_lru
        self._block[_LAG] += of_lru - int((hits & counts).sum())
        self._seen += len(rows)
        self._uses += len(rows)
        if self._uses >= _BLOCK:
            self._close_block()

    def _close_block(self) -> None:
        self._uses = 0
        has_model = self._model is not None
        keep = 1 - 1 / _MEMORY_BLOCKS
        for name, lead in self._block.items():
            self._barred[name] -= 1
            if name != MODEL or has_model:
                self._lead[name] = self._lead[name] * keep + lead
                self._spread[name] = self._spread[name] * keep + lead * lead
                self._blocks[name] = self._blocks[name] * keep + 1
            self._block[name] = 0

    def decide(self, held: Callable[[], Rows]) -> str:
        """Return who is to rule now."""
        best, most = self.ruler, 0.0
        has_lost = self.ruler == MODEL and self._saved < -_MOST_LOSS * self._seen
        for name in (*EXPERTS, MODEL):
            lead = self._lead[name]
            is_known = self._blocks[name] >= _LEAST_BLOCKS and self._barred[name] <= 0
            if is_known and lead > most and (has_lost or self._is_ahead(name)):
                best, most = name, lead
        if self._lags():
            self._barred[self.ruler] = self._bar
            self._bar *= 2
            best = FIRST
        if best != self.ruler:
            self.changes += 1
            self._deposed += self.ruler == MODEL
            self.begin(best, held)
        return self.ruler

    def _lags(self) -> bool:
        """Whether L1 is worse than LRU's shadow, by more than the sample explains."""
        if self.ruler == FIRST or self._blocks[_LAG] < _LEAST_BLOCKS_OF_L1:
            return False
        least = _MOST_LAG * self._blocks[_LAG] * _BLOCK
        return bool(self._lead[_LAG] > max(_CAUTION * self._spread[_LAG] ** 0.5, least))

    def _is_ahead(self, name: str) -> bool:
        lead, deviation = self._lead[name], self._spread[name] ** 0.5
        if name == MODEL:
            return bool(lead > min(self._deposed, _CAUTION) * deviation)
        least = _LEAST_LEAD * self._blocks[name] * _BLOCK
        return bool(lead > max(_CAUTION * deviation, least))

    def begin(self, ruler: str, held: Callable[[], Rows]) -> None:
        """Let somebody rule. `held` returns the rows of what L1 has, the oldest use first."""
        rows = held() if self._of_model is None else None  # before: it may bring uses to `take`
        self.ruler = ruler
        self._forget()
        if self.rate == 1 and ruler == MODEL:
            self._of_model = None
        elif self._of_model is None and rows is not None:
            self._of_model = self._new_shadow()
            self._of_model.begin(rows[rows["key"] != 0])

    def has_proved_model(self) -> bool:
        """Return whether the model was compared here lately, and no other is ahead of it."""
        if self._model is None or self._blocks[MODEL] < _LEAST_BLOCKS:
            return False
        return all(self._lead[MODEL] >= self._lead[name] for name in EXPERTS)

    def main_share(self, ruler: str) -> float:
        """Return what part of L1 a policy of the literature would have past its probation."""
        return self._shadows[ruler].main_share

    def regret(self) -> dict[str, float]:
        """Return how many more hits each would have had than the ruler, as a share of all uses."""
        return {
            name: round(lead / max(self._blocks[name] * _BLOCK, 1.0), 4)
            for name, lead in self._lead.items()
            if name not in (self.ruler, _LAG)
        }

    def _new_shadow(self) -> ModelShadow:
        shadow = ModelShadow(self.shadow_slots, self.slots, self._whole, self._seed)
        shadow.follow(self._model)
        return shadow

    def _forget(self) -> None:
        """What was compared with the last ruler says nothing of the next."""
        self._lead = dict.fromkeys(_COMPARED, 0.0)
        self._spread = dict.fromkeys(self._lead, 0.0)
        self._blocks = dict.fromkeys(self._lead, 0.0)
        self._block = dict.fromkeys(self._lead, 0)
        self._uses = 0


def _rate(slots: int) -> int:
    """Return of how many chunks one is in the sample: a power of two, which seldom changes."""
    return 1 if slots <= _ALL_SLOTS else 1 << (slots // _SHADOW_SLOTS).bit_length() - 1
