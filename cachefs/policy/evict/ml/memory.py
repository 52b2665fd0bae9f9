"""What is known of the chunks in L1, by slot, and what a model is told of them.

Uses within `_BURST` of each other are one visit, so that a burst inside a chunk does not hide the
gaps between visits.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cachefs.policy.evict.ml.past import Past
from cachefs.policy.evict.ml.places import Places
from cachefs.policy.evict.ml.rows import NO_GAP, ROW, Rows, Times, log2, runs
from cachefs.policy.evict.seam import Arrival, Slots

Features = npt.NDArray[np.float32]
"""(chunks, len(FEATURES))."""

FEATURES = (
    "recency",
    "gap 1",
    "gap 2",
    "gap 3",
    "frequency, short",
    "frequency, long",
    "uses",
    "age",
    "recency of the chunk before",
    "recency of the chunk behind",
    "recency of the region",
    "frequency of the region",
    "place",
    "wait since the chunk before",
    "gaps together",
    "distance to the last use",
    "frame share",
    "cost",
    "prefetched, unused",
)
"""All times are log2 of uses; frequencies decay by half in half as many uses as there are slots
(short), and in eight times as many (long)."""

_BURST = 8


class Memory:
    """Rows by slot, digested in batches. `past` and `places` may be shared with others."""

    def __init__(self, past: Past, places: Places) -> None:
        self.now = 1
        self._rows: Rows = np.zeros(0, ROW)
        self.slots: Rows = self._rows
        self.past = past
        self.places = places
        self._short, self._long = 64.0, 512.0

    def grow(self, slots: int, all_slots: int) -> None:
        """Slots 0 to `slots` - 1 exist here, of `all_slots` that share past and places."""
        if slots > len(self._rows):  # twice as many: what is not touched takes no memory
            wider = np.zeros(max(slots, 2 * len(self._rows)), ROW)
            wider[: len(self.slots)] = self.slots
            self._rows = wider
        self.slots = self._rows[: max(slots, len(self.slots))]
        self._short, self._long = max(64.0, all_slots / 2), max(512.0, all_slots * 8.0)
        self.past.grow(all_slots)
        self.places.grow(all_slots)

    def arrive(self, slots: Slots, arrivals: list[Arrival]) -> None:
        """Chunks came into slots; their uses, if they were any, come with `digest`."""
        key, place, span, unused, cost, frame = zip(*arrivals, strict=True)
        rows = np.zeros(len(slots), ROW)
        rows["key"] = key
        rows["place"] = place
        rows["span"] = span
        rows["is_unused"] = unused
        rows["cost"] = cost
        rows["frame"] = frame
        rows["born"] = self.now
        rows["gaps"] = NO_GAP
        self.past.recall(rows)
        rows["last"][rows["is_unused"] & (rows["last"] == 0)] = self.now  # so old is its arrival
        self.slots[slots] = rows

    def arrive_many(self, slots: Slots) -> None:
        """Chunks of which nothing is known are in these slots."""
        self.slots[slots] = np.zeros(1, ROW)
        self.slots["gaps"][slots] = NO_GAP
        self.slots["cost"][slots] = 1
        self.slots["born"][slots] = self.slots["last"][slots] = self.now

    def leave(self, slots: Slots) -> None:
        """Chunks are given up: remember them."""
        self.past.remember(self.slots[slots])

    def digest(self, used: Slots, times: Times) -> tuple[Slots, Times]:
        """Take in uses, in order. Returns the slots, each once, and when each was first used."""
        self.now = int(times[-1]) + 1
        slots, first, last, times_used = runs(used)
        rows = self.slots[slots]
        gap = np.where(rows["last"] > 0, times[first] - rows["last"], 0)
        is_visit = gap > _BURST
        gaps = rows["gaps"]
        shifted = np.concatenate((log2(gap)[:, None], gaps[:, :2]), axis=1)
        rows["gaps"] = np.where(is_visit[:, None], shifted, gaps)
        rows["short"] = rows["short"] * np.exp2(-gap / self._short) + times_used
        rows["long"] = rows["long"] * np.exp2(-gap / self._long) + times_used
        rows["uses"] = np.minimum(rows["uses"].astype(np.int64) + times_used, 2**16 - 1)
        rows["last"] = times[last]
        rows["is_unused"] = False
        self.slots[slots] = rows
        return slots, times[first]

    def features(self, slots: Slots) -> Features:
        """Return what a model may know of the chunks in these slots now."""
        rows, now, places = self.slots[slots], self.now, self.places
        found = np.empty((len(slots), len(FEATURES)), np.float32)
        since = now - rows["last"]
        place, gaps = rows["place"], rows["gaps"].astype(np.float32)
        before, behind = places.when(place - rows["span"]), places.when(place + rows["span"])
        region_since, region_often = places.region(place, now)
        found[:, 0] = log2(since)
        found[:, 1:4] = gaps
        found[:, 4] = rows["short"] * np.exp2(-since / self._short)
        found[:, 5] = rows["long"] * np.exp2(-since / self._long)
        found[:, 6] = rows["uses"]
        found[:, 7] = log2(now - rows["born"])
        found[:, 8] = np.where(before, log2(now - before), NO_GAP)
        found[:, 9] = np.where(behind, log2(now - behind), NO_GAP)
        found[:, 10] = log2(region_since)
        found[:, 11] = region_often
        found[:, 12] = place >> 16
        found[:, 13] = np.where(before, signed_log2(rows["last"] - before), NO_GAP)
        found[:, 14] = np.log2(np.exp2(gaps).sum(1))
        found[:, 15] = signed_log2((place - places.last) >> 16)
        found[:, 16] = rows["frame"]
        found[:, 17] = rows["cost"]
        found[:, 18] = rows["is_unused"]
        return found


def signed_log2(count: Times) -> npt.NDArray[np.float32]:
    """Return the logarithms of the amounts, with their signs."""
    amount = np.log2(np.abs(count) + 1, dtype=np.float32)
    return np.asarray(np.where(count < 0, -amount, amount), np.float32)
