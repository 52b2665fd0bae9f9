"""Association: which chunks are read soon after this one, whatever lies between.

As MITHRIL does it (Yang et al., SoCC'17), pairs are mined in batches: each chunk has a few places
for those that followed it within a window; one that does not come back loses its place. What was
seen often enough is kept as a list of its own, so that a look costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from cachefs.policy.prefetch.calibration import Calibration
from cachefs.policy.prefetch.learner import CAUTIOUS_FLOOR, MOST_ROWS, SECTIONS, Rows, keys_at
from cachefs.policy.prefetch.novelty import Novelty
from cachefs.policy.prefetch.seam import NOTHING, Access, Image, Wish
from cachefs.policy.prefetch.wishes import merged

MOST_TRACKED = 1 << 15
"""Chunks of an image whose followers are counted: 4 MB of memory."""
_FOLLOWERS = 8
_WINDOW = 8
_BATCH = 256
_LEAST_COUNT = 2
_LEAST_SHARE = 0.5
_MOST_COUNTED = 64
_COUNTS, _SHARES = 4, 4
_NONE = -1
_MIX = np.int64(0x9E3779B1)
_LAGS = np.arange(1, _WINDOW + 1)


class _Pairs:
    """What is known of one image. A chunk has the row that its number hashes to, or none."""

    def __init__(self) -> None:
        self.calibration = Calibration(_COUNTS * _SHARES)
        self.strong: dict[int, list[tuple[int, int]]] = {}
        """Chunk: those that follow it often enough, with their kinds."""
        self._batch: list[int] = []

    # Most images that are open are hardly read: what is counted gets memory with the first batch.

    @cached_property
    def owner(self) -> npt.NDArray[np.int64]:
        """The chunk that has a row, (rows,)."""
        return np.full(MOST_TRACKED, _NONE, np.int64)

    @cached_property
    def times(self) -> npt.NDArray[np.int32]:
        """How often it was read, (rows,)."""
        return np.zeros(MOST_TRACKED, np.int32)

    @cached_property
    def to(self) -> npt.NDArray[np.int64]:
        """Those that followed it, (rows, followers)."""
        return np.full((MOST_TRACKED, _FOLLOWERS), _NONE, np.int64)

    @cached_property
    def counts(self) -> npt.NDArray[np.int32]:
        """And how often, (rows, followers)."""
        return np.zeros((MOST_TRACKED, _FOLLOWERS), np.int32)

    def take(self, chunks: list[int]) -> None:
        """New chunks were read."""
        self._batch += chunks
        if len(self._batch) >= _BATCH + _WINDOW:
            self._mine(np.array(self._batch[: _BATCH + _WINDOW], np.int64))
            del self._batch[:_BATCH]

    def _mine(self, chunks: npt.NDArray[np.int64]) -> None:
        """Count who follows each of all chunks but the last _WINDOW."""
        leaders = chunks[:_BATCH]
        rows = self.rows_of(leaders)
        self._claim(rows, leaders)
        # The last leader to claim a row has it; the others are passed over this time.
        mine = np.flatnonzero(self.owner[rows] == leaders)
        touched, first = np.unique(rows[mine], return_index=True)
        while len(mine):  # most often once: few chunks are new twice
            once = mine[first]
            self.times[rows[once]] += 1
            self._count(rows[once], chunks[once[:, None] + _LAGS])
            mine = np.delete(mine, first)
            first = np.unique(rows[mine], return_index=True)[1]
        self._judge_all(touched)

    def rows_of(self, chunks: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the row of each chunk."""
        return (chunks * _MIX >> np.int64(16)) % MOST_TRACKED

    def _claim(self, rows: npt.NDArray[np.int64], leaders: npt.NDArray[np.int64]) -> None:
        others = self.owner[rows] != leaders
        aged = rows[others]
        self.times[aged] >>= 1  # whoever had the row keeps it if it was seen often
        lost = others & (self.times[rows] == 0)
        taken = rows[lost]
        for chunk in self.owner[taken].tolist():
            self.strong.pop(chunk, None)
        self.owner[taken] = leaders[lost]
        self.to[taken] = _NONE
        self.counts[taken] = 0

    def _count(self, rows: npt.NDArray[np.int64], followers: npt.NDArray[np.int64]) -> None:
        """Count those that followed, (rows, lags), where each row is another one."""
        is_empty = ~self.counts[rows].any(axis=1)
        empty, used = rows[is_empty], rows[~is_empty]
        self.to[empty], self.counts[empty] = followers[is_empty], 1
        if len(used):
            to, counts = self.to[used], self.counts[used]
            _count(to, counts, followers[~is_empty])
            self.to[used], self.counts[used] = to, counts

    def _judge_all(self, rows: npt.NDArray[np.int64]) -> None:
        """Judge those rows that are strong, or too old; in a scan there are none."""
        times, counts = self.times[rows], self.counts[rows]
        is_ripe = _are_strong(counts, times[:, None]).any(axis=1) | (times >= _MOST_COUNTED)
        if self.strong:
            for owner in self.owner[rows[~is_ripe]].tolist():
                self.strong.pop(owner, None)
        for row in rows[is_ripe].tolist():
            self.judge(row)

    def judge(self, row: int) -> None:
        """Work out what is strong in a row."""
        times = int(self.times[row])
        if times >= _MOST_COUNTED:
            self.times[row] >>= 1
            self.counts[row] >>= 1
        found = [
            (chunk, kind_of(count, times))
            for chunk, count in zip(self.to[row].tolist(), self.counts[row].tolist(), strict=True)
            if chunk != _NONE and count >= _LEAST_COUNT and count >= _LEAST_SHARE * times
        ]
        owner = int(self.owner[row])
        if found:
            self.strong[owner] = found
        else:
            self.strong.pop(owner, None)


def _are_strong(
    counts: npt.NDArray[np.int32], times: npt.NDArray[np.int32]
) -> npt.NDArray[np.bool_]:
    """Return which counts are often enough, of so many times."""
    return (counts >= _LEAST_COUNT) & (counts >= _LEAST_SHARE * times)


def _count(
    to: npt.NDArray[np.int64], counts: npt.NDArray[np.int32], followers: npt.NDArray[np.int64]
) -> None:
    """Count followers, one after the other; what is new wears down the weakest, and replaces it."""
    lines = np.arange(len(to))
    for lag in range(_WINDOW):
        who = followers[:, lag]
        same = to == who[:, None]
        counts += same
        weakest = counts.argmin(axis=1)
        left = counts[lines, weakest] - ~same.any(axis=1)
        gone = np.flatnonzero(left < 0)
        left[gone] = 1
        counts[lines, weakest] = left
        to[gone, weakest[gone]] = who[gone]


def kind_of(count: int, times: int) -> int:
    """Return the kind of an expectation: seen so often, of so many times."""
    share = min(_SHARES - 1, int((count / times - _LEAST_SHARE) * 2 * _SHARES))
    return min(_COUNTS - 1, max(0, count - _LEAST_COUNT)) * _SHARES + max(0, share)


class Association:
    """See Arm."""

    name = "association"

    def __init__(self, novelty: Novelty | None = None, floor: float = CAUTIOUS_FLOOR) -> None:
        self._novelty = novelty or Novelty()
        self._floor = floor
        self._pairs: dict[Image, _Pairs] = {}

    def opened(self, image: Image, time_s: float) -> Sequence[Wish]:
        """See Arm."""
        self._of(image)
        return NOTHING

    def observe(self, image: Image, access: Access) -> Sequence[Wish]:
        """See Arm."""
        fresh = self._novelty.of(image, access)
        if not fresh:
            return NOTHING
        pairs = self._of(image)
        pairs.calibration.seen(fresh)
        pairs.take(fresh)
        strong = pairs.strong
        if not strong:
            return NOTHING
        recent = self._novelty.recent(image)
        likely = [pair for chunk in fresh if chunk in strong for pair in strong[chunk]]
        likely = [pair for pair in likely if pair[0] not in recent]
        if not likely:
            return NOTHING
        expected = pairs.calibration.expect(likely, self._floor)
        return merged(expected, image.chunks) if expected else NOTHING

    def judged(self, image: Image, chunk: int, was_used: bool) -> None:
        """See Arm."""
        pairs = self._pairs.get(image)
        if pairs is not None:
            pairs.calibration.judged(chunk, was_used)

    def closed(self, image: Image, time_s: float) -> None:
        """See Arm."""
        self._pairs.pop(image, None)
        self._novelty.forget(image)

    def learned(self, image: Image) -> Rows | None:
        """See Learner: pairs that were seen often enough."""
        pairs = self._pairs.get(image)
        if pairs is None or not pairs.strong:
            return None
        row, place = np.nonzero(
            (pairs.to != _NONE) & _are_strong(pairs.counts, pairs.times[:, None])
        )
        if not len(row):
            return None
        row, place = row[:MOST_ROWS], place[:MOST_ROWS]
        rows = np.zeros(len(row), SECTIONS[self.name])
        rows["key"] = keys_at(image, pairs.owner[row])
        rows["next"] = keys_at(image, pairs.to[row, place])
        rows["count"] = pairs.counts[row, place]
        rows["of"] = pairs.times[row]
        known: Rows = rows[(rows["key"] != 0) & (rows["next"] != 0)]
        return known

    def taught(self, image: Image, rows: Rows) -> None:
        """See Learner."""
        pairs = self._of(image)
        leaders, followers = (
            image.find(np.ascontiguousarray(rows[field])) for field in ("key", "next")
        )
        times = np.clip(np.nan_to_num(rows["of"]), 1, _MOST_COUNTED - 1).astype(np.int32)
        counts = np.clip(np.nan_to_num(rows["count"]), 1, times).astype(np.int32)
        where = pairs.rows_of(leaders)
        used: dict[int, int] = {}
        for at in np.flatnonzero((leaders >= 0) & (followers >= 0)).tolist():
            row = int(where[at])
            if pairs.owner[row] not in (_NONE, leaders[at]) or used.get(row, 0) >= _FOLLOWERS:
                continue
            place = used[row] = used.get(row, 0) + 1
            pairs.owner[row], pairs.times[row] = leaders[at], times[at]
            pairs.to[row, place - 1], pairs.counts[row, place - 1] = followers[at], counts[at]
        for row in used:
            pairs.judge(row)

    def _of(self, image: Image) -> _Pairs:
        pairs = self._pairs.get(image)
        if pairs is None:
            pairs = self._pairs[image] = _Pairs()
        return pairs
