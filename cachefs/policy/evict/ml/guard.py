"""The guard: sampled caches of the literature run beside the model, and take over when it loses.

A shadow is a small cache that sees a sample of all chunks, by their keys, and as much smaller as
the sample is (Waldspurger et al., SHARDS, FAST'15). The misses of L1 itself, on the same sample,
are compared with those of the shadows. While a shadow's policy rules, what the model would do is
not seen: the model is tried again after a while, which doubles each time that it loses.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from cachefs.policy.evict.lru import Lru
from cachefs.policy.evict.order import Ticks
from cachefs.policy.evict.s3fifo import S3Fifo
from cachefs.policy.evict.seam import Arrival
from cachefs.policy.evict.twoq import TwoQ

EXPERTS: dict[str, Callable[[Ticks], Lru]] = {"lru": Lru, "2q": TwoQ, "s3fifo": S3Fifo}
MODEL = "model"

_MOST_SLOTS = 512
"""Of a shadow, about: its miss ratio is within some 3% of the truth then."""
_LEAST_LOSS = 0.01
"""The model may be that part of all sampled uses worse than the best before it is left."""
_CAUTION = 4.0
"""And by as many standard deviations of the difference."""
_MOST_PATIENCE = 64
_MIX = np.uint64(0x9E3779B97F4A7C15)


class Shadow:
    """One policy over a sample of the chunks."""

    def __init__(self, make: Callable[[Ticks], Lru], slots: int) -> None:
        self._policy = make(Ticks())
        self._policy.grow(slots)
        self._slot_of: dict[int, int] = {}
        self._key_in = [0] * slots
        self._free = list(range(slots))

    def use(self, key: int) -> bool:
        """Use a chunk; returns whether it was there."""
        slot = self._slot_of.get(key)
        if slot is not None:
            self._policy.touch(slot)
            return True
        if not self._free:
            for victim in self._policy.evict(1, _keep_none):
                del self._slot_of[self._key_in[victim]]
                self._free.append(victim)
        slot = self._free.pop()
        self._slot_of[key], self._key_in[slot] = slot, key
        self._policy.insert(slot, Arrival(key))
        return False


class Guard:
    """Who rules: the model, or one of the experts."""

    def __init__(self, slots: int) -> None:
        self.ruler = MODEL
        self.rate = max(1, slots // _MOST_SLOTS)
        self.slots = slots
        self.losses = dict.fromkeys(EXPERTS, 0.0)
        """Decayed: L1's misses less the shadow's, on sampled uses. The regret, if positive."""
        self._shadows = {
            name: Shadow(make, max(1, slots // self.rate)) for name, make in EXPERTS.items()
        }
        self._spread = dict.fromkeys(EXPERTS, 0.0)
        self._seen = 0.0
        self._memory = 16 * max(64, slots // self.rate)
        self._patience = 1
        self._wait = 0
        self._trial = 0

    def sampled(self, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """Return which chunks are in the sample."""
        return np.asarray((keys * _MIX >> np.uint64(13)) % np.uint64(self.rate) == 0)

    def used(self, key: int, is_hit: bool) -> None:
        """A sampled chunk was wanted, and L1 had it or not."""
        keep = 1 - 1 / self._memory
        for name, shadow in self._shadows.items():
            difference = int(shadow.use(key)) - int(is_hit)
            self.losses[name] = self.losses[name] * keep + difference
            self._spread[name] = self._spread[name] * keep + abs(difference)
        self._seen = self._seen * keep + 1
        self._trial += 1
        self._wait -= 1

    def regret(self) -> dict[str, float]:
        """Return by how much of all uses L1 misses more than each shadow, as a share."""
        return {name: round(loss / max(self._seen, 1.0), 4) for name, loss in self.losses.items()}

    def decide(self) -> str:
        """Return who is to rule now."""
        if self.ruler == MODEL:
            self._judge_model()
        elif self._wait <= 0:
            self.begin(MODEL)
        else:
            best = max(self.losses, key=lambda name: self.losses[name])
            if best != self.ruler and self._is_worse_than(best):
                self.begin(best)
        return self.ruler

    def _judge_model(self) -> None:
        if self._trial < self._memory // 16:
            return
        best = max(self.losses, key=lambda name: self.losses[name])
        if self._is_worse_than(best):
            self._wait = self._patience * self._memory // 2
            self._patience = min(2 * self._patience, _MOST_PATIENCE)
            self.begin(best)
        elif self._trial > 2 * self._memory:
            self._patience = 1

    def _is_worse_than(self, name: str) -> bool:
        allowed = max(_LEAST_LOSS * self._seen, _CAUTION * self._spread[name] ** 0.5)
        return bool(self.losses[name] > allowed)

    def begin(self, ruler: str) -> None:
        """Let somebody rule. What was lost before says nothing of who comes now."""
        if ruler != MODEL and self._wait <= 0:
            self._wait = self._memory // 2
        self.ruler = ruler
        self._trial = 0
        self.losses = dict.fromkeys(self.losses, 0.0)
        self._spread = dict.fromkeys(self._spread, 0.0)
        self._seen = 0.0


def _keep_none(_: int) -> bool:
    return False
