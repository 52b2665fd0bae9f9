"""Markov: which chunk comes after this one; and where that is ambiguous, after these two.

Sparse and bounded: four followers of a context at most, whose counts are halved now and then, and
so many contexts, of which the one that was used least recently goes. Chains are followed as long as
they are certain. Chunks are indexes while the image is open, and contents at rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np

from cachefs.policy.prefetch.calibration import Calibration
from cachefs.policy.prefetch.learner import CAUTIOUS_FLOOR, MOST_ROWS, SECTIONS, Rows, keys_at
from cachefs.policy.prefetch.novelty import Novelty
from cachefs.policy.prefetch.seam import NOTHING, Access, Image, Wish
from cachefs.policy.prefetch.wishes import merged

MOST_CONTEXTS = 1 << 16
"""Of each order, of an image: at most 16 MB of memory together, where most have one follower."""
_MOST_FOLLOWERS = 4
_MOST_COUNTED = 32
_FARTHEST = 4
"""Links of a chain."""
_AMBIGUOUS = 0.7
"""A follower less frequent than that is looked up by two chunks as well."""
_ORDERS, _COUNTS, _SHARES = 2, 4, 4
_NO_CHUNK = -1

Followers = dict[int, int]
"""Chunk: how often it came next."""

_COUNT_BITS = 6
_COUNT = (1 << _COUNT_BITS) - 1
"""What is known of a context that has one follower, as most have, is a number: the chunk, and in
these bits how often it came."""


class _Table:
    """Contexts of one order: those that were used lately, and those that were before."""

    def __init__(self) -> None:
        self._rows: dict[int, int | Followers] = {}
        self._older: dict[int, int | Followers] = {}

    def get(self, context: int) -> int | Followers | None:
        """Return what followed a context."""
        known = self._rows.get(context)
        return self._older.get(context) if known is None else known

    def add(self, context: int, chunk: int, count: int = 1) -> bool:
        """Count a follower of a context; returns whether it has others."""
        known = self._rows.get(context)
        if known is None:
            known = self._older.pop(context, None)
            if len(self._rows) >= MOST_CONTEXTS // 2:
                self._older, self._rows = self._rows, {}
            if known is None:
                self._rows[context] = chunk << _COUNT_BITS | count
                return False
            self._rows[context] = known
        if isinstance(known, dict):
            _count(known, chunk, count)
            return len(known) > 1
        only, counted = known >> _COUNT_BITS, known & _COUNT
        if only != chunk:
            self._rows[context] = {only: counted, chunk: count}
            return True
        more = counted + count
        self._rows[context] = chunk << _COUNT_BITS | (
            more // 2 if counted >= _MOST_COUNTED else more
        )
        return False

    def followers(self) -> Iterator[tuple[int, int, int]]:
        """Return (context, chunk, count) of all; contexts that were used last come last."""
        for context, known in chain(self._older.items(), self._rows.items()):
            if isinstance(known, dict):
                for chunk, count in known.items():
                    yield context, chunk, count
            else:
                yield context, known >> _COUNT_BITS, known & _COUNT


def _count(followers: Followers, chunk: int, count: int) -> None:
    counted = followers.get(chunk)
    if counted is not None:
        followers[chunk] = counted + count
        if counted >= _MOST_COUNTED:
            _halve(followers)
    elif len(followers) < _MOST_FOLLOWERS:
        followers[chunk] = count
    else:
        rarest = min(followers, key=followers.__getitem__)
        followers[rarest] -= count
        if followers[rarest] <= 0:
            del followers[rarest]
            followers[chunk] = count


def _halve(followers: Followers) -> None:
    for chunk, count in list(followers.items()):
        if count > 1:
            followers[chunk] = count // 2
        else:
            del followers[chunk]


class _Chains:
    """What is known of one image."""

    def __init__(self) -> None:
        self.calibration = Calibration(_ORDERS * _COUNTS * _SHARES * _FARTHEST)
        self.first = _Table()
        self.second = _Table()
        self.before = _NO_CHUNK
        self.last = _NO_CHUNK

    def take(self, chunk: int) -> None:
        """A new chunk was read."""
        last = self.last
        if last != _NO_CHUNK and self.first.add(last, chunk) and self.before != _NO_CHUNK:
            self.second.add(pair_of(self.before, last), chunk)
        self.before, self.last = last, chunk

    def next(self, before: int, chunk: int) -> tuple[int, int]:
        """Return what comes next most likely, and what kind of knowledge that is."""
        followers = self.first.get(chunk)
        if followers is None:
            return _NO_CHUNK, 0
        order = 0
        best, count, total = _best(followers)
        if count < _AMBIGUOUS * total and before != _NO_CHUNK:
            longer = self.second.get(pair_of(before, chunk))
            if longer is not None:
                order = 1
                best, count, total = _best(longer)
        share = min(_SHARES - 1, int(_SHARES * count / total))
        counted = min(_COUNTS - 1, count.bit_length() - 1)
        return best, (order * _COUNTS + counted) * _SHARES + share


def _best(followers: int | Followers) -> tuple[int, int, int]:
    """Return the follower that came most often, how often it did, and all of them."""
    if not isinstance(followers, dict):
        count = followers & _COUNT
        return followers >> _COUNT_BITS, count, count
    best, most, total = _NO_CHUNK, 0, 0
    for chunk, count in followers.items():
        total += count
        if count > most:
            best, most = chunk, count
    return best, most, total


def pair_of(before: int, chunk: int) -> int:
    """Return the context that two chunks are."""
    return before << 32 | chunk


class Markov:
    """See Arm."""

    name = "markov"

    def __init__(self, novelty: Novelty | None = None, floor: float = CAUTIOUS_FLOOR) -> None:
        self._novelty = novelty or Novelty()
        self._floor = floor
        self._chains: dict[Image, _Chains] = {}

    def opened(self, image: Image, time_s: float) -> Sequence[Wish]:
        """See Arm."""
        self._of(image)
        return NOTHING

    def observe(self, image: Image, access: Access) -> Sequence[Wish]:
        """See Arm."""
        fresh = self._novelty.of(image, access)
        if not fresh:
            return NOTHING
        chains = self._of(image)
        chains.calibration.seen(fresh)
        for chunk in fresh:
            chains.take(chunk)
        expected = self._look_ahead(image, chains)
        return merged(expected, image.chunks) if expected else NOTHING

    def _look_ahead(self, image: Image, chains: _Chains) -> list[tuple[int, float]]:
        recent = self._novelty.recent(image)
        confidences = chains.calibration.confidences
        expected: list[tuple[int, int]] = []
        before, chunk = chains.before, chains.last
        for link in range(_FARTHEST):
            ahead, kind = chains.next(before, chunk)
            if ahead == _NO_CHUNK:
                break
            kind = kind * _FARTHEST + link
            if ahead not in recent:
                expected.append((ahead, kind))
            if confidences[kind] < self._floor:
                break
            before, chunk = chunk, ahead
        return chains.calibration.expect(expected, self._floor) if expected else []

    def judged(self, image: Image, chunk: int, was_used: bool) -> None:
        """See Arm."""
        chains = self._chains.get(image)
        if chains is not None:
            chains.calibration.judged(chunk, was_used)

    def closed(self, image: Image, time_s: float) -> None:
        """See Arm."""
        self._chains.pop(image, None)
        self._novelty.forget(image)

    def learned(self, image: Image) -> Rows | None:
        """See Learner. The contexts that were used last come last."""
        chains = self._chains.get(image)
        if chains is None:
            return None
        found = [
            (
                context >> 32 if table is chains.second else _NO_CHUNK,
                context & 0xFFFFFFFF,
                to,
                count,
            )
            for table in (chains.second, chains.first)
            for context, to, count in table.followers()
        ][-MOST_ROWS:]
        if not found:
            return None
        at = np.array(found, np.int64)
        rows = np.zeros(len(at), SECTIONS[self.name])
        rows["count"] = at[:, 3]
        for column, field in enumerate(("before", "key", "next")):
            known = at[:, column] >= 0
            rows[field][known] = keys_at(image, at[known, column])
        is_whole = (rows["key"] != 0) & (rows["next"] != 0)
        whole: Rows = rows[is_whole & ((rows["before"] != 0) | (at[:, 0] < 0))]
        return whole

    def taught(self, image: Image, rows: Rows) -> None:
        """See Learner."""
        chains = self._of(image)
        before, chunk, to = (
            image.find(np.ascontiguousarray(rows[field])) for field in ("before", "key", "next")
        )
        is_first = rows["before"] == 0
        usable = (chunk >= 0) & (to >= 0) & (is_first | (before >= 0))
        counts = np.clip(np.nan_to_num(rows["count"]), 1, _MOST_COUNTED).astype(np.int64)
        for at in np.flatnonzero(usable).tolist():
            count = int(counts[at])
            if is_first[at]:
                chains.first.add(int(chunk[at]), int(to[at]), count)
            else:
                chains.second.add(pair_of(int(before[at]), int(chunk[at])), int(to[at]), count)

    def _of(self, image: Image) -> _Chains:
        chains = self._chains.get(image)
        if chains is None:
            chains = self._chains[image] = _Chains()
        return chains
