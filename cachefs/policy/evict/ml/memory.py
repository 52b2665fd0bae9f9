"""What is known of the chunks in L1, by slot, and what a model is told of them.

Uses within `_BURST` of each other are one visit, so that a burst inside a chunk does not hide the
gaps between visits.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cachefs.policy.evict.ml.clock import NEVER, Sweep, since, stamp_of, stamps_of
from cachefs.policy.evict.ml.past import Past
from cachefs.policy.evict.ml.places import Places
from cachefs.policy.evict.ml.rows import (
    MOST_OFTEN,
    NO_GAP,
    ROW,
    Figures,
    Rows,
    Times,
    coded_gaps,
    costs,
    frame_shares,
    gaps,
    log2,
    places,
    rows_of,
    runs,
    spans,
)
from cachefs.policy.evict.ml.table import resize
from cachefs.policy.evict.seam import UNKNOWN, Arrival, Slots

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
        self.slots: Rows = np.zeros(0, ROW)
        self.past = past
        self.places = places
        self._sweep = Sweep()
        self._short, self._long = 64.0, 512.0

    def grow(self, slots: int, all_slots: int) -> None:
        """Slots 0 to `slots` - 1 exist here, of `all_slots` that share past and places."""
        if slots > len(self.slots):
            resize(self.slots, slots)
        self._short, self._long = max(64.0, all_slots / 2), max(512.0, all_slots * 8.0)
        self.past.grow(all_slots)
        self.places.grow(all_slots)

    def arrive(self, slots: Slots, arrivals: list[Arrival]) -> None:
        """Chunks came into slots; their uses, if they were any, come with `digest`."""
        rows = rows_of(arrivals)
        rows["born"] = stamp_of(self.now)
        self.past.recall(rows)
        is_unused = rows["is_unused"] & (rows["last"] == NEVER)
        rows["last"][is_unused] = stamp_of(self.now)  # so old is its arrival
        self.slots[slots] = rows

    def arrive_many(self, slots: Slots) -> None:
        """Chunks of which nothing is known are in these slots."""
        row = rows_of([UNKNOWN])
        row["born"] = row["last"] = stamp_of(self.now)
        self.slots[slots] = row

    def leave(self, slots: Slots) -> None:
        """Chunks are given up: remember them."""
        self.past.remember(self.slots[slots])

    def renew(self, slots: Slots) -> None:
        """These were used, and nothing is to be learned from that."""
        self.slots["last"][slots] = stamp_of(self.now)

    def digest(self, used: Slots, times: Times) -> tuple[Slots, Times]:
        """Take in uses, in order. Returns the slots, each once, and when each was first used."""
        self.now = int(times[-1]) + 1
        slots, first, last, times_used = runs(used)
        rows = self.slots[slots]
        gap = np.where(rows["last"] == NEVER, 0, since(times[first], rows["last"]))
        is_visit = gap > _BURST
        shifted = np.concatenate((coded_gaps(log2(gap))[:, None], rows["gaps"][:, :2]), axis=1)
        rows["gaps"] = np.where(is_visit[:, None], shifted, rows["gaps"])
        for name, half_life in (("short", self._short), ("long", self._long)):
            often = rows[name] * np.exp2(-np.maximum(gap, 0) / half_life) + times_used
            rows[name] = np.minimum(often, MOST_OFTEN)
        rows["uses"] = np.minimum(rows["uses"].astype(np.int64) + times_used, 2**16 - 1)
        rows["last"] = stamps_of(times[last])
        rows["is_unused"] = False
        self.slots[slots] = rows
        self._sweep.turn(self.now, self.slots["last"], self.slots["born"])
        self.past.sweep(self.now)
        self.places.sweep(self.now)
        return slots, times[first]

    def ages(self, rows: Rows) -> Times:
        """Return how long ago chunks were used."""
        return np.where(rows["last"] == NEVER, self.now, since(self.now, rows["last"]))

    def features(self, slots: Slots) -> Features:
        """Return what a model may know of the chunks in these slots now."""
        rows, now = self.slots[slots], self.now
        found = np.empty((len(slots), len(FEATURES)), np.float32)
        ago, place, span, gap = self.ages(rows), places(rows), spans(rows), gaps(rows)
        before, is_before = self._neighbour(place - span)
        behind, is_behind = self._neighbour(place + span)
        region_ago, region_often = self.places.region(place, now)
        found[:, 0] = log2(ago)
        found[:, 1:4] = gap
        found[:, 4] = rows["short"] * np.exp2(-ago / self._short)
        found[:, 5] = rows["long"] * np.exp2(-ago / self._long)
        found[:, 6] = rows["uses"]
        found[:, 7] = log2(since(now, rows["born"]))
        found[:, 8] = np.where(is_before, log2(before), NO_GAP)
        found[:, 9] = np.where(is_behind, log2(behind), NO_GAP)
        found[:, 10] = log2(region_ago)
        found[:, 11] = region_often
        found[:, 12] = place >> 16
        found[:, 13] = np.where(is_before, signed_log2(before - ago), NO_GAP)
        found[:, 14] = np.log2(np.exp2(gap).sum(1))
        found[:, 15] = signed_log2((place - self.places.last) >> 16)
        found[:, 16] = frame_shares(rows)
        found[:, 17] = costs(rows)
        found[:, 18] = rows["is_unused"]
        return found

    def _neighbour(self, place: Times) -> tuple[Times, npt.NDArray[np.bool_]]:
        """Return how long ago places were used, and of which that is known."""
        last = self.places.last_used(place)
        return since(self.now, last), last != NEVER


def signed_log2(count: Times) -> Figures:
    """Return the logarithms of the amounts, with their signs."""
    amount = np.log2(np.abs(count) + 1, dtype=np.float32)
    return np.asarray(np.where(count < 0, -amount, amount), np.float32)
