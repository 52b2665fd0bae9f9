"""What is known of each chunk's uses, in arrays by slot, and of those that were given up.

Times are counts of uses of this class of slots: a gap of 1,000 is 1,000 uses of any chunk. Uses
within `_BURST` of each other are one visit, so that a burst inside a chunk does not hide the gaps
between visits. 60 bytes a slot; what is remembered of chunks that were given up takes 32 to 64
bytes a slot more, and the recency of places 40 to 80.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

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
    "sequential",
    "gaps together",
    "distance to the last use",
    "frame share",
    "cost",
    "prefetched, unused",
)
"""All times are log2 of uses; frequencies decay by half in half as many uses as there are slots
(short), and in eight times as many (long)."""

_BURST = 8
_NO_GAP = 32.0
_REGION_BITS = 20
_MIX = np.uint64(0x9E3779B97F4A7C15)
_LEAST_PLACES = 4096
_LEAST_PAST = 1024

_SLOT = np.dtype(
    [
        ("key", np.uint64),
        ("place", np.int64),
        ("last", np.int64),
        ("born", np.int64),
        ("gaps", np.float16, 3),
        ("short", np.float32),
        ("long", np.float32),
        ("span", np.uint32),
        ("uses", np.uint16),
        ("frame", np.float16),
        ("cost", np.float16),
        ("is_sequential", np.bool_),
        ("is_unused", np.bool_),
    ]
)
_PAST = ("key", "last", "gaps", "short", "long", "uses")


class Memory:
    """Arrays by slot, digested in batches."""

    def __init__(self) -> None:
        self.now = 1
        self.slots = np.zeros(0, _SLOT)
        self._past = np.zeros(_LEAST_PAST, [(name, *_field(name)) for name in _PAST])
        self._place_used = np.zeros(_LEAST_PLACES, np.int64)
        self._region_used = np.zeros(_LEAST_PLACES, np.int64)
        self._region_long = np.zeros(_LEAST_PLACES, np.float32)
        self._short, self._long = 64.0, 512.0
        self._last_place = self._last_end = 0

    def grow(self, slots: int) -> None:
        """Slots 0 to `slots` - 1 exist. What was remembered by hash is forgotten at a doubling."""
        if slots <= len(self.slots):
            return
        wider = np.zeros(slots, _SLOT)
        wider[: len(self.slots)] = self.slots
        self.slots = wider
        self._short, self._long = max(64.0, slots / 2), max(512.0, slots * 8.0)
        past = max(_LEAST_PAST, 1 << (slots - 1).bit_length())
        if past > len(self._past):
            self._past = np.zeros(past, self._past.dtype)
        places = max(_LEAST_PLACES, 2 << (slots - 1).bit_length())
        if places > len(self._place_used):
            self._place_used = np.zeros(places, np.int64)
            self._region_used = np.zeros(places, np.int64)
            self._region_long = np.zeros(places, np.float32)

    def arrive(self, slots: Slots, arrivals: list[Arrival]) -> None:
        """Chunks came into slots; their uses, if they were any, come with `digest`."""
        key, place, span, unused, cost, frame = zip(*arrivals, strict=True)
        rows = np.zeros(len(slots), _SLOT)
        rows["key"] = key
        rows["place"] = place
        rows["span"] = span
        rows["is_unused"] = unused
        rows["cost"] = cost
        rows["frame"] = frame
        rows["born"] = self.now
        rows["gaps"] = _NO_GAP
        at = _hash(rows["key"]) & (len(self._past) - 1)
        known = (self._past["key"][at] == rows["key"]) & (rows["key"] != 0)
        for name in _PAST:
            rows[name][known] = self._past[name][at[known]]
        self.slots[slots] = rows

    def arrive_many(self, slots: Slots) -> None:
        """Chunks of which nothing is known are in these slots."""
        self.slots[slots] = np.zeros(1, _SLOT)
        self.slots["gaps"][slots] = _NO_GAP
        self.slots["born"][slots] = self.slots["last"][slots] = self.now

    def leave(self, slots: Slots) -> None:
        """Chunks are given up: remember them."""
        left = self.slots[slots]
        left = left[left["key"] != 0]
        at = _hash(left["key"]) & (len(self._past) - 1)
        for name in _PAST:
            self._past[name][at] = left[name]

    def digest(self, used: Slots) -> tuple[Slots, npt.NDArray[np.int64]]:
        """Take in uses, in order. Returns the slots, each once, and when each was first used."""
        count = len(used)
        times = self.now + np.arange(count)
        self.now += count
        slots, first, times_used = np.unique(used, return_index=True, return_counts=True)
        last = np.zeros(len(slots), np.int64)
        last[np.searchsorted(slots, used)] = times  # the last one stays
        rows = self.slots[slots]
        gap = np.where(rows["last"] > 0, times[first] - rows["last"], 0)
        is_visit = gap > _BURST
        gaps = rows["gaps"]
        shifted = np.concatenate((_log(gap)[:, None], gaps[:, :2]), axis=1)
        rows["gaps"] = np.where(is_visit[:, None], shifted, gaps)
        rows["short"] = rows["short"] * np.exp2(-gap / self._short) + times_used
        rows["long"] = rows["long"] * np.exp2(-gap / self._long) + times_used
        rows["uses"] = np.minimum(rows["uses"].astype(np.int64) + times_used, 2**16 - 1)
        rows["last"] = last
        rows["is_unused"] = False
        self.slots[slots] = rows
        self._digest_places(used, times)
        return slots, times[first]

    def _digest_places(self, used: Slots, times: npt.NDArray[np.int64]) -> None:
        place = self.slots["place"][used]
        end = place + self.slots["span"][used]
        before = np.concatenate(([self._last_place], place[:-1]))
        end_before = np.concatenate(([self._last_end], end[:-1]))
        sequential = self.slots["is_sequential"]
        sequential[used] = (place == end_before) | ((place == before) & sequential[used])
        self._last_place, self._last_end = int(place[-1]), int(end[-1])
        self._place_used[self._at(place)] = times
        regions, counts = np.unique(self._region(place), return_counts=True)
        gone = times[-1] - self._region_used[regions]
        decayed = self._region_long[regions] * np.exp2(-gone / self._long)
        self._region_long[regions] = decayed + counts
        self._region_used[regions] = times[-1]

    def features(self, slots: Slots) -> Features:
        """Return what a model may know of the chunks in these slots now."""
        rows = self.slots[slots]
        found = np.empty((len(slots), len(FEATURES)), np.float32)
        since = self.now - rows["last"]
        place, gaps = rows["place"], rows["gaps"].astype(np.float32)
        region = self._region(place)
        region_since = self.now - self._region_used[region]
        found[:, 0] = _log(since)
        found[:, 1:4] = gaps
        found[:, 4] = rows["short"] * np.exp2(-since / self._short)
        found[:, 5] = rows["long"] * np.exp2(-since / self._long)
        found[:, 6] = rows["uses"]
        found[:, 7] = _log(self.now - rows["born"])
        found[:, 8] = _log(self.now - self._place_used[self._at(place - rows["span"])])
        found[:, 9] = _log(self.now - self._place_used[self._at(place + rows["span"])])
        found[:, 10] = _log(region_since)
        found[:, 11] = self._region_long[region] * np.exp2(-region_since / self._long)
        found[:, 12] = place >> 16
        found[:, 13] = rows["is_sequential"]
        found[:, 14] = np.log2(np.exp2(gaps).sum(1))
        distance = place - self._last_place
        found[:, 15] = np.log2(np.abs(distance) / 65536 + 1) * np.sign(distance)
        found[:, 16] = rows["frame"]
        found[:, 17] = rows["cost"]
        found[:, 18] = rows["is_unused"]
        return found

    def _at(self, place: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return _hash(place.astype(np.uint64)) & (len(self._place_used) - 1)

    def _region(self, place: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return _hash((place >> _REGION_BITS).astype(np.uint64) + np.uint64(1 << 50)) & (
            len(self._region_used) - 1
        )


def _field(name: str) -> tuple[object, ...]:
    fields = _SLOT.fields
    assert fields is not None
    kind = fields[name][0]
    return (kind.base, kind.shape) if kind.shape else (kind,)


def _log(count: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    return np.log2(np.maximum(count, 1)).astype(np.float32)


def _hash(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    return ((keys * _MIX) >> np.uint64(20)).astype(np.int64)
