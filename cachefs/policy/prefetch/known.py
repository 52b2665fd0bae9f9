"""What is known of the starts of an image, where it lies in this version of it.

Rows of a profile are found by content. Where most of them lie as they lay, content that is gone is
expected to have been replaced in its place: by an upgrade, as metadata of file systems is.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cachefs.policy.prefetch.learner import Rows
from cachefs.policy.prefetch.seam import Image
from cachefs.policy.prefetch.starts import LEAST_CONFIDENCE, Likeness, confidence_of, sound

Flags = npt.NDArray[np.bool_]
Places = npt.NDArray[np.int64]
Part = tuple[int, int, float, int]
"""First chunk, how many, confidence, ms after the open at which they are due."""

_SAME_PLACE = 0.5
"""If so many chunks lie where they lay, those whose content is gone are expected there too."""
_REPLACED = 0.8
"""What such a guess is worth, beside a chunk of known content."""
_MOST_GUESSED = 8
"""Of guesses that lie next to each other: a file that an upgrade wrote elsewhere leaves a long run
of places with other content. Each one that is touched lets so many more be expected."""
_FIRST_STAGE_BYTES = 2**20
_MOST_STAGE_BYTES = 8 * 2**20
_SAME_SHARE = 0.95
"""If so much of what is known lies where it lay, the profile is of this image, or nearly."""
_NO_ROWS: Places = np.zeros(0, np.int64)


class Known:
    """What is known of the starts of an image, where it lies in it. Made in any thread."""

    def __init__(self, rows: Rows, image: Image) -> None:
        rows = self.taught = sound(rows)
        found = image.find(np.ascontiguousarray(rows["key"]))
        place = rows["place"].astype(np.int64)
        is_found = found >= 0
        self.is_same = len(rows) > 0 and float((found == place).mean()) >= _SAME_SHARE
        """Whether it was learned of this image, or nearly."""
        is_replaced = np.zeros(len(rows), np.bool_)
        if is_found.any() and (found == place)[is_found].mean() >= _SAME_PLACE:
            is_replaced = ~is_found & (place < image.chunks)
            found = np.where(is_replaced, place, found)
        usable = np.flatnonzero((found >= 0) & (found < image.chunks))
        self.chunks, first = np.unique(found[usable], return_index=True)
        self.rows = rows[usable[first]]
        is_guess = is_replaced[usable[first]]
        self._worth = np.where(is_guess, _REPLACED, 1.0)
        self._run = np.zeros(len(self.chunks), np.int64)
        """Of neighbours that are guesses: their number, from 1; 0: it is none."""
        self._place_in_run = self._run.copy()
        self._run[is_guess], self._place_in_run[is_guess] = _runs_of(self.chunks[is_guess])
        self._worth[self._place_in_run >= _MOST_GUESSED] = 0.0
        self._guessed: dict[int, int] = {}
        """How many of a run are expected."""
        self.row_of = dict(zip(self.chunks.tolist(), range(len(self.chunks)), strict=True))
        self.which = self.rows["which"].tolist()
        self.likeness = Likeness(rows)

    def confidence(self, rows: Places | slice = slice(None)) -> npt.NDArray[np.float64]:
        """Return how certain the chunks of these rows are to be touched in this start, (n,)."""
        sure = confidence_of(self.rows[rows], self.likeness.weights())
        return np.asarray(sure * self._worth[rows])

    def touched(self, row: int) -> Places:
        """A chunk was touched for the first time; returns the rows that are expected with it."""
        self.likeness.touched(self.which[row])
        run = int(self._run[row])
        if not run:
            return _NO_ROWS
        guessed = self._guessed.get(run, _MOST_GUESSED)
        self._guessed[run] = guessed + _MOST_GUESSED
        begin = row - int(self._place_in_run[row]) + guessed  # a run lies in rows one by one
        near = np.arange(begin, min(begin + _MOST_GUESSED, len(self.chunks)))
        more: Places = near[self._run[near] == run]
        self._worth[more] = _REPLACED
        return more

    def in_order(self, is_certain: Flags) -> Places:
        """Return the places of these rows among each other, in the order of time."""
        order = np.argsort(self.rows["time_ms"][is_certain], kind="stable")
        places: Places = np.empty_like(order)
        places[order] = np.arange(len(order))
        return places

    def staged(self, rows: Places, chunk_bytes: int) -> list[Places]:
        """Return these rows in stages that grow, in the order of time."""
        rows = rows[np.argsort(self.rows["time_ms"][rows], kind="stable")]
        stages, begin, stage_bytes = [], 0, _FIRST_STAGE_BYTES
        while begin < len(rows):
            end = begin + max(1, stage_bytes // chunk_bytes)
            stages.append(rows[begin:end])
            begin, stage_bytes = end, min(2 * stage_bytes, _MOST_STAGE_BYTES)
        return stages

    def parts(self, stage: Places) -> list[Part]:
        """Return runs of neighbours of about the same confidence, what is due first first."""
        rows = np.sort(stage)
        chunks, confidence = self.chunks[rows], self.confidence(rows)
        level = (confidence * 8).astype(np.int64)
        is_begin = (np.diff(chunks, prepend=-2) != 1) | (np.diff(level, prepend=-1) != 0)
        begins = np.flatnonzero(is_begin)
        counts = np.diff(begins, append=len(rows))
        means = np.add.reduceat(confidence, begins) / counts
        ms = np.minimum.reduceat(self.rows["time_ms"][rows].astype(np.int64), begins)
        columns = (chunks[begins], counts, means, ms)
        return sorted(
            zip(*(column.tolist() for column in columns), strict=True), key=lambda part: part[3]
        )


def places_of(rows: Rows, image: Image) -> list[tuple[int, int]]:
    """Return the (first, count) of the chunks that a start probably touches, what is due first."""
    known = Known(rows, image)
    certain = np.flatnonzero(known.confidence() >= LEAST_CONFIDENCE)
    stages = known.staged(certain, image.chunk_bytes)
    return [(first, count) for stage in stages for first, count, _, _ in known.parts(stage)]


def _runs_of(chunks: Places) -> tuple[Places, Places]:
    """Return which run of neighbours each chunk is in, from 1, and its place there, from 0."""
    is_begin = np.diff(chunks, prepend=-2) != 1
    run = np.cumsum(is_begin)
    return run, np.arange(len(chunks)) - np.flatnonzero(is_begin)[run - 1]
