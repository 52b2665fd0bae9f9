"""What a guest has touched lately, for the host that it moves to. Pure.

A time for each chunk of the image: touching is an assignment, a whole batch at a time, so hits that
the arms are not told of count as well; pages of chunks that nobody touches take no memory.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cachefs.policy.prefetch.learner import MOST_ROWS, SECTIONS, Rows, keys_at
from cachefs.policy.prefetch.seam import Image

_NEVER = np.float32(0)
_FEW = 16
"""Accesses that are quicker one by one: large reads come a few at a time."""


class Recent:
    """The last access to each chunk of one open image."""

    def __init__(self, chunks: int) -> None:
        self._touched_s = np.zeros(chunks, np.float32)
        """By chunk, seconds after the first access, and one; 0: never."""
        self._begin_s: float | None = None

    def touch(
        self,
        first: npt.NDArray[np.int64],
        count: npt.NDArray[np.int64],
        time_s: npt.NDArray[np.float64],
    ) -> None:
        """Take accesses, (n,) each, in the order of time: their first chunks, and how many."""
        if not len(first):
            return
        if self._begin_s is None:
            self._begin_s = float(time_s[0])
        since_s = np.maximum(time_s - self._begin_s, 0) + 1
        if len(first) < _FEW:
            for begin, length, when_s in zip(
                first.tolist(), count.tolist(), since_s.tolist(), strict=True
            ):
                part = self._touched_s[begin : begin + length]
                np.maximum(part, when_s, out=part)
            return
        for ahead in range(int(count.max())):
            inside = (count > ahead) & (first + ahead < len(self._touched_s))
            chunks = first[inside] + ahead
            self._touched_s[chunks] = np.maximum(self._touched_s[chunks], since_s[inside])

    def chunks(self, now_s: float, lately_s: float) -> npt.NDArray[np.int64]:
        """Return the chunks that were touched in the last `lately_s`, the newest first, (n,)."""
        if self._begin_s is None:
            return np.zeros(0, np.int64)
        since_s = now_s - self._begin_s + 1 - lately_s
        found = np.flatnonzero((self._touched_s != _NEVER) & (self._touched_s >= since_s))
        order = np.argsort(-self._touched_s[found], kind="stable")
        return found[order][:MOST_ROWS]

    def rows(self, image: Image, now_s: float, lately_s: float) -> Rows:
        """Return the same as a record of a start, (n,): what was touched last comes first."""
        chunks = self.chunks(now_s, lately_s)
        rows = np.zeros(len(chunks), SECTIONS["replay"])
        rows["key"] = keys_at(image, chunks)
        rows["place"] = np.minimum(chunks, 2**32 - 1)
        rows["time_ms"] = np.arange(len(chunks))
        rows["which"] = 1
        found: Rows = rows[rows["key"] != 0]
        return found
