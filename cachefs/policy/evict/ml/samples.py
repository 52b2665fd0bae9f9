"""Samples: what was known of a chunk at some moment, and how long it then took to be wanted again.

A sample waits until its chunk is used, or until so much time has passed that the answer is "not
soon" (the boundary of a relaxed Belady: Song et al., LRB, NSDI'20). A chunk that was given up is
still waited for, by its key.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cachefs.policy.evict.ml.memory import FEATURES, Features
from cachefs.policy.evict.ml.table import resize
from cachefs.policy.evict.seam import Slots

MOST_LABELLED = 32_768
_MOST_WAITING = 32_768
_NONE = -1


class Samples:
    """Waiting samples in a ring, labelled ones in another: 128 bytes each at most."""

    def __init__(self) -> None:
        self.labelled = 0
        """How many there were so far; the last MOST_LABELLED are kept."""
        self._features = np.zeros((MOST_LABELLED, len(FEATURES)), np.float32)
        self._after = np.zeros(MOST_LABELLED, np.float32)
        self._waiting = np.zeros((_MOST_WAITING, len(FEATURES)), np.float32)
        self._since = np.zeros(_MOST_WAITING, np.int64)
        self._is_waiting = np.zeros(_MOST_WAITING, np.bool_)
        self._guess = np.zeros(_MOST_WAITING, np.float32)
        self._owner = np.full(_MOST_WAITING, _NONE, np.int64)
        """The slot whose sample it is; none when its chunk was given up."""
        self._key = np.zeros(_MOST_WAITING, np.uint64)
        """The key of its chunk if it was given up."""
        self._of_slot = np.zeros(0, np.int32)
        self._of_key: dict[int, int] = {}
        self._first = self._next = 0
        self.right = 0.0
        self.soon = 0.0
        self.judged = 0.0
        """Decayed counts: guesses that were right, chunks that came back soon, guesses."""

    def grow(self, slots: int) -> None:
        """Slots 0 to `slots` - 1 exist."""
        known = len(self._of_slot)
        if slots > known:
            resize(self._of_slot, slots)
            self._of_slot[known:] = _NONE

    def is_free(self, slots: Slots) -> npt.NDArray[np.bool_]:
        """Return which of these slots have no sample that waits."""
        return np.equal(self._of_slot[slots], _NONE)

    def add(
        self, slots: Slots, features: Features, guesses: npt.NDArray[np.float32], now: int
    ) -> None:
        """Take samples of slots that have none; `guesses`: the chance of not soon, NaN unknown."""
        room = _MOST_WAITING - (self._next - self._first)
        slots = slots[:room]
        at = (self._next + np.arange(len(slots))) % _MOST_WAITING
        self._waiting[at] = features[:room]
        self._guess[at] = guesses[:room]
        self._since[at] = now
        self._is_waiting[at] = True
        self._owner[at] = slots
        self._key[at] = 0
        self._of_slot[slots] = at
        self._next += len(slots)

    def used(self, slots: Slots, when: npt.NDArray[np.int64], boundary: float) -> None:
        """Label the samples of chunks that were used; each slot is named once."""
        at = self._of_slot[slots]
        has = at != _NONE
        if has.any():
            self._of_slot[slots[has]] = _NONE
            at = at[has]
            waited = (when[has] - self._since[at])[self._is_waiting[at]]
            self._label(at[self._is_waiting[at]], waited.astype(np.float32), boundary)

    def left(self, slots: Slots, keys: npt.NDArray[np.uint64]) -> None:
        """Chunks were given up: wait for their keys."""
        has = self._of_slot[slots] != _NONE
        for slot, key in zip(slots[has].tolist(), keys[has].tolist(), strict=True):
            self._left_one(slot, key)

    def arrived(self, slots: list[int], keys: list[int]) -> None:
        """Chunks came into slots, perhaps back."""
        for slot, key in zip(slots, keys, strict=True):
            if key in self._of_key:
                self._arrived_one(slot, key)

    def _left_one(self, slot: int, key: int) -> None:
        at = int(self._of_slot[slot])
        self._of_slot[slot] = _NONE
        if at == _NONE:
            return
        self._owner[at] = _NONE
        if key and self._is_waiting[at]:
            self._key[at] = key
            self._of_key[key] = at

    def _arrived_one(self, slot: int, key: int) -> None:
        at = self._of_key.pop(key, _NONE)
        if at == _NONE or not self._is_waiting[at] or int(self._key[at]) != key:
            self._of_slot[slot] = _NONE
            return
        self._key[at] = 0
        self._owner[at] = slot
        self._of_slot[slot] = at

    def expire(self, now: int, longest: float, boundary: float) -> None:
        """Label those that have waited longer than `longest` as not wanted."""
        span = np.arange(self._first, self._next) % _MOST_WAITING
        late = int(np.searchsorted(self._since[span], now - longest, side="left"))
        at = span[:late]
        self._first += late
        at = at[self._is_waiting[at]]
        owned = self._owner[at]
        self._of_slot[owned[owned != _NONE]] = _NONE
        self._label(at, np.full(len(at), 2 * longest, np.float32), boundary)
        if len(self._of_key) > 2 * _MOST_WAITING:
            self._of_key = {
                key: at
                for key, at in self._of_key.items()
                if self._is_waiting[at] and int(self._key[at]) == key
            }

    def training_set(self) -> tuple[Features, npt.NDArray[np.float32]]:
        """Return copies of the labelled samples: features, and uses until the next use."""
        count = min(self.labelled, MOST_LABELLED)
        return self._features[:count].copy(), self._after[:count].copy()

    def _label(
        self, at: npt.NDArray[np.int64], after: npt.NDArray[np.float32], boundary: float
    ) -> None:
        if not len(at):
            return
        to = (self.labelled + np.arange(len(at))) % MOST_LABELLED
        self._features[to] = self._waiting[at]
        self._after[to] = after
        self._is_waiting[at] = False
        self.labelled += len(at)
        guess = self._guess[at]
        judged = ~np.isnan(guess)
        soon = after[judged] <= boundary
        decay = 0.9998 ** float(judged.sum())
        self.right = self.right * decay + float(((guess[judged] < 0.5) == soon).sum())
        self.soon = self.soon * decay + float(soon.sum())
        self.judged = self.judged * decay + float(judged.sum())
