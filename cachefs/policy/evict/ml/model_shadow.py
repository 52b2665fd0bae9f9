"""What L1 would hold, of a sample of the chunks, if the model ruled."""

from __future__ import annotations

import numpy as np

from cachefs.policy.evict.ml.memory import Memory
from cachefs.policy.evict.ml.models import Model
from cachefs.policy.evict.ml.ranker import Ranker
from cachefs.policy.evict.ml.rows import Rows, Times, arrival_of
from cachefs.policy.evict.order import Ticks


class ModelShadow:
    """A small cache ranked by the model. It shares with L1 what is known of the past."""

    def __init__(self, slots: int, all_slots: int, whole: Memory, seed: int) -> None:
        memory = Memory(whole.past, whole.places)
        memory.now = whole.now
        memory.grow(slots, all_slots)
        self._ranker = _Sampled(Ticks(), seed, memory)
        self._free: list[int] = []
        self._slot_of: dict[int, int] = {}
        self._key_in: list[int] = []
        """Of every slot that there was, also of those above `_slots`."""
        self._slots = 0
        self.resize(slots, all_slots)

    def resize(self, slots: int, all_slots: int) -> None:
        """Hold so many chunks from now on."""
        more = slots - len(self._key_in)
        if more > 0:
            self._free += range(len(self._key_in), slots)
            self._key_in += [0] * more
            self._ranker.grow(slots)
            self._ranker.memory.grow(slots, all_slots)
        self._slots = slots

    def begin(self, rows: Rows) -> None:
        """Hold these chunks, in the order of their last use; of too many, those used last."""
        _, last = np.unique(rows["key"][::-1], return_index=True)
        rows = rows[np.sort(len(rows) - 1 - last)][-self._slots :]  # each key once
        slots = np.array([self._free.pop() for _ in range(len(rows))], np.int64)
        for slot, key in zip(slots.tolist(), rows["key"].tolist(), strict=True):
            self._slot_of[key], self._key_in[slot] = slot, key
        self._ranker.insert_many(slots)
        self._ranker.memory.slots[slots] = rows

    def follow(self, model: Model | None) -> None:
        """Rank by this model from now on."""
        self._ranker.follow(model)

    def use_many(self, rows: Rows, times: Times) -> list[bool]:
        """Use chunks; returns which were there. Their rows say what a model may know of them."""
        ranker, found = self._ranker, []
        keys = rows["key"].tolist()
        for at, (key, time) in enumerate(zip(keys, times.tolist(), strict=True)):
            slot = self._slot_of.get(key)
            found.append(slot is not None)
            if slot is not None:
                ranker.times.append(time)
                ranker.use(slot)
                continue
            excess = len(self._slot_of) + 1 - self._slots
            if excess > 0:
                for victim in ranker.evict(excess, _keep_none):
                    del self._slot_of[self._key_in[victim]]
                    self._free.append(victim)
            slot = self._free.pop()
            self._slot_of[key], self._key_in[slot] = slot, key
            ranker.times.append(time)
            ranker.insert(slot, arrival_of(rows[at]))
        return found


class _Sampled(Ranker):
    """Is told when each use was, because it does not see those between."""

    def __init__(self, ticks: Ticks, seed: int, memory: Memory) -> None:
        super().__init__(ticks, seed, memory)
        self.times: list[int] = []

    def use(self, slot: int) -> None:
        """A chunk was read."""
        self._used.renew(slot)
        self._log.append(slot)

    def _times(self, count: int) -> Times:
        times = np.array(self.times, np.int64)
        self.times.clear()
        return times


def _keep_none(_: int) -> bool:
    return False
