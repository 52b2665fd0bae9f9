"""A replay with prefetching: a recording, an L1, arms, and a model of the store.

The clock is virtual and the arms are those of the daemon. With no link, what is wished for is there
at once: that is what the arms know. With a link it takes as long as a store takes, and a guest that
has to wait does everything else later too: that is what they are worth.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import process_time
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cachefs.policy.evict.seam import Arrival, EvictionPolicy
from cachefs.policy.prefetch.seam import Access, Arm, Keys, Wish
from cachefs.simulate.accesses import SPAN, place_of
from cachefs.units import MIB

_MOST_RUN_BYTES = 8 * MIB
"""One request to the store: the gain of merging ends there (learning.md, measured)."""


L1, LATE, STORE = "L1", "fetched ahead, late", "the store"
"""Who serves a chunk, beside the arms."""


class Served(NamedTuple):
    """A chunk that was read, when, and who served it: one of the three, or an arm."""

    time_s: float
    chunk: int
    who: str


@dataclass(frozen=True, slots=True)
class Link:
    """A store: every stream waits so long and then has so many bytes a second."""

    latency_s: float = 0.030
    bytes_per_s: float = 100e6
    streams: int = 8
    """That many fetches ahead at once; those that somebody waits for are not limited."""

    def takes_s(self, size_bytes: int) -> float:
        """Return how long one request takes."""
        return self.latency_s + size_bytes / self.bytes_per_s


class Recorded:
    """An image of which only the places of chunks are known, or their contents too. See Image."""

    def __init__(self, chunk_bytes: int, keys: Keys) -> None:
        self.chunk_bytes = chunk_bytes
        self.chunks = len(keys)
        self._keys = keys
        self._order = np.argsort(keys, kind="stable")
        self._sorted = keys[self._order]

    def keys(self, first: int, count: int) -> Keys:
        """See Image."""
        return self._keys[first : first + count]

    def find(self, keys: Keys) -> npt.NDArray[np.int64]:
        """See Image."""
        at = np.minimum(np.searchsorted(self._sorted, keys), self.chunks - 1)
        return np.where((self._sorted[at] == keys) & (keys != 0), self._order[at], -1)


def unlike_keys(chunks: int, seed: int = 0) -> Keys:
    """Return keys of chunks of which none is like another."""
    return (np.arange(1, chunks + 1, dtype=np.uint64) + np.uint64(seed << 40)) * np.uint64(
        0x9E3779B97F4A7C15
    )


@dataclass(slots=True)
class Tally:
    """What became of the chunks that one arm had fetched."""

    fetched: int = 0
    used: int = 0
    late: int = 0
    """Used, but the reader waited for it."""

    @property
    def accuracy(self) -> float:
        """Used / fetched."""
        return self.used / self.fetched if self.fetched else 0.0


@dataclass(slots=True)
class Result:
    """What a replay showed."""

    accesses: int = 0
    misses: int = 0
    stall_s: float = 0.0
    requests: int = 0
    """To the store."""
    tallies: dict[str, Tally] = field(default_factory=dict)
    policy_s: float = 0.0
    """CPU of the arms."""

    @property
    def whole(self) -> Tally:
        """All arms together."""
        each = self.tallies.values()
        return Tally(
            sum(t.fetched for t in each), sum(t.used for t in each), sum(t.late for t in each)
        )


class Replay:
    """One L1 and its arms, over as many requests as are read."""

    def __init__(
        self,
        image: Recorded,
        slots: int,
        policy: EvictionPolicy,
        arms: Sequence[Arm] = (),
        link: Link | None = None,
        floor: float = 0.5,
        most_ahead: float = 0.5,
    ) -> None:
        self.result = Result(tallies={arm.name: Tally() for arm in arms})
        self.now_s = 0.0
        self.served: list[Served] | None = None
        """Who served each chunk; kept where a list is put here before."""
        self._image = image
        self._arms = arms
        self._by_name = {arm.name: arm for arm in arms}
        self._link = link
        self._floor = floor
        self._most_unused = max(1, int(slots * most_ahead))
        self._policy = policy
        policy.grow(slots)
        self._slot_of: dict[int, int] = {}
        self._chunk_in = [-1] * slots
        self._free = list(range(slots - 1, -1, -1))
        self._unused: dict[int, str] = {}
        """Fetched ahead and not used yet: by which arm."""
        self._flying: dict[int, float] = {}
        self._landings: list[tuple[float, int, int]] = []
        self._streams = [0.0] * (link.streams if link else 1)
        self._queue: list[tuple[float, int, int, int, float]] = []
        self._queued: dict[int, str] = {}
        self._turn = 0

    def open(self) -> None:
        """Open the image."""
        for arm in self._arms:
            self._take(arm, arm.opened(self._image, self.now_s))

    def close(self) -> None:
        """Close it: what was fetched and not used is wasted."""
        for arm in self._arms:
            arm.closed(self._image, self.now_s)
        for chunk, name in self._unused.items():
            self._by_name[name].judged(self._image, chunk, was_used=False)
        self._unused.clear()

    def read(self, first: int, count: int, offset_bytes: int = -1, size_bytes: int = 0) -> None:
        """Read chunks, now; `offset_bytes` and `size_bytes` say it more precisely."""
        if self._link is not None:
            self._progress()
        result, wait_until = self.result, self.now_s
        begin_s = self.now_s
        result.accesses += count
        missing: list[int] = []
        is_hit = True
        for chunk in range(first, first + count):
            slot = self._slot_of.get(chunk)
            if slot is not None:
                self._policy.touch(slot)
                self._note(begin_s, chunk, self._unused.get(chunk, L1))
                if chunk in self._unused:
                    self._use(chunk)
            elif chunk in self._flying:
                is_hit = False
                wait_until = max(wait_until, self._flying[chunk])
                self._note(begin_s, chunk, LATE)
                result.tallies[self._unused[chunk]].late += 1
                self._use(chunk)
            else:
                is_hit = False
                self._note(begin_s, chunk, STORE)
                missing.append(chunk)
        if missing:
            wait_until = max(wait_until, self._demand(missing))
        result.stall_s += wait_until - self.now_s
        self.now_s = wait_until
        access = Access(self.now_s, 0, first, count, is_hit, offset_bytes, size_bytes)
        started = process_time()
        wishes = [(arm, arm.observe(self._image, access)) for arm in self._arms]
        result.policy_s += process_time() - started
        for arm, wished in wishes:
            if wished:
                self._take(arm, wished)
        if self._link is not None:
            self._progress()

    def _note(self, time_s: float, chunk: int, who: str) -> None:
        if self.served is not None:
            self.served.append(Served(time_s, chunk, who))

    def _use(self, chunk: int) -> None:
        name = self._unused.pop(chunk)
        self.result.tallies[name].used += 1
        self._by_name[name].judged(self._image, chunk, was_used=True)

    def _demand(self, missing: list[int]) -> float:
        """Fetch what somebody waits for; returns when it is there."""
        self.result.misses += len(missing)
        until = self.now_s
        for first, count in runs_of(missing, _MOST_RUN_BYTES // self._image.chunk_bytes):
            self.result.requests += 1
            if self._link is not None:
                until = max(until, self.now_s + self._link.takes_s(count * self._image.chunk_bytes))
            for chunk in range(first, first + count):
                self._queued.pop(chunk, None)
        for chunk in missing:
            self._insert(chunk, is_prefetched=False)
        return until

    def _insert(self, chunk: int, *, is_prefetched: bool) -> None:
        if chunk in self._slot_of:
            return
        if not self._free:
            for victim in self._policy.evict(1, _keep_none):
                left = self._chunk_in[victim]
                del self._slot_of[left]
                self._free.append(victim)
                name = self._unused.pop(left, None)
                if name is not None:
                    self._by_name[name].judged(self._image, left, was_used=False)
        slot = self._free.pop()
        self._slot_of[chunk], self._chunk_in[slot] = slot, chunk
        self._policy.insert(
            slot, Arrival(chunk + 1, place_of(chunk), SPAN, is_prefetched=is_prefetched)
        )

    def _take(self, arm: Arm, wishes: Sequence[Wish]) -> None:
        for wish in wishes:
            if wish.confidence < self._floor:
                continue
            fresh = [
                chunk
                for chunk in range(wish.first, wish.first + wish.count)
                if chunk not in self._slot_of
                and chunk not in self._flying
                and chunk not in self._queued
            ]
            room = self._most_unused - len(self._unused) - len(self._queued)
            fresh = fresh[: max(0, room)]
            if self._link is None:
                for chunk in fresh:
                    self._fetch_ahead(chunk, arm.name)
                    self._insert(chunk, is_prefetched=True)
                self.result.requests += len(list(runs_of(fresh, 1 << 30)))
                continue
            for chunk in fresh:
                self._queued[chunk] = arm.name
            for first, count in runs_of(fresh, _MOST_RUN_BYTES // self._image.chunk_bytes):
                self._turn += 1
                due = self.now_s + wish.due_s
                heapq.heappush(self._queue, (due, self._turn, first, count, self.now_s))

    def _fetch_ahead(self, chunk: int, name: str) -> None:
        self._unused[chunk] = name
        self.result.tallies[name].fetched += 1

    def _progress(self) -> None:
        """Do what has happened up to now on the streams."""
        link = self._link
        assert link is not None
        while self._queue and self._streams[0] <= self.now_s:
            _, _, first, count, since_s = heapq.heappop(self._queue)
            asked = [
                (chunk, self._queued.pop(chunk))
                for chunk in range(first, first + count)
                if chunk in self._queued
            ]
            if not asked:
                continue
            begin_s = max(self._streams[0], since_s)
            end_s = begin_s + link.takes_s(len(asked) * self._image.chunk_bytes)
            heapq.heapreplace(self._streams, end_s)
            self.result.requests += 1
            for chunk, name in asked:
                self._flying[chunk] = end_s
                self._fetch_ahead(chunk, name)
                heapq.heappush(self._landings, (end_s, self._turn, chunk))
        while self._landings and self._landings[0][0] <= self.now_s:
            chunk = heapq.heappop(self._landings)[2]
            del self._flying[chunk]
            self._insert(chunk, is_prefetched=chunk in self._unused)


def runs_of(chunks: Sequence[int], longest: int) -> list[tuple[int, int]]:
    """Return runs of neighbours: (first, count) of each, at most `longest` long."""
    runs: list[tuple[int, int]] = []
    for chunk in chunks:
        if runs and chunk == sum(runs[-1]) and runs[-1][1] < longest:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((chunk, 1))
    return runs


def _keep_none(_: int) -> bool:
    return False
