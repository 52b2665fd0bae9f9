"""Record and replay: what a guest touches in the first minutes is fetched the next time, in order.

As REAP does it for memory snapshots (Ustiugov et al., ASPLOS'21), but by content and by consensus:
a chunk is worth as much as the share of runs in which it was touched, older runs counting less. A
replay comes in stages that grow, each as soon as the guest has touched enough of those before: a
file that is opened only to be looked at, or a record of something else, costs the first stages.

A record is taken until the working set stops growing.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from cachefs.errors import CachefsError
from cachefs.policy.prefetch.learner import MOST_ROWS, SECTIONS, Rows, keys_at
from cachefs.policy.prefetch.seam import NOTHING, Access, Image, Wish

LONGEST_RECORD_S = 600.0
_QUIET_S = 30.0
"""Without a new chunk for so long, the working set has stopped growing."""
_LOOK_INTERVAL_S = 10.0
_LEAST_GROWTH = 0.02
"""In that interval, of all: less is no growth; not before the first minute is over."""
_FIRST_GROWTH_S = 60.0

_AGEING = 0.8
"""What earlier runs count for, with each run: some five runs are remembered."""
_FORGOTTEN = 0.1
_LEAST_CONFIDENCE = 0.5
_SAME_PLACE = 0.5
"""If so many chunks lie where they lay, those whose content is gone are expected there too."""
_REPLACED = 0.8
"""What such a guess is worth, beside a chunk of known content."""
_LEAST_RUN = 0.1
"""A run that ends early and touches a smaller part of what is known says nothing of a start."""

_FIRST_STAGE_BYTES = 2**20
_MOST_STAGE_BYTES = 8 * 2**20
_FREE_BYTES = 16 * 2**20
"""Of stages that need no evidence."""
_LEVERAGE = 8
"""Each byte that came true lets so many more be wished for."""
_SAME_SHARE = 0.95
_SAME_FREE_BYTES = 32 * 2**20
_SAME_LEVERAGE = 64
"""If so much of what is known lies where it lay, the profile is of this image, or nearly: both are
larger then, since a resume is over before evidence of single chunks comes in. A look at a file
still ends it after the free stages, and the budget of the image bounds what a lie costs."""
_TRUST = 16.0

_LEAD_PRIOR_CHUNKS = 32
_LEAD_SHARE = 0.8
_LEAD_MEMORY = 256
"""So much of about so many new chunks has to be expected: then a start goes as it is known. The
kernel's readahead makes one of twelve new in the second resume of the same snapshot (measured)."""

_Part = tuple[int, int, float, int]
"""First chunk, how many, confidence, ms after the open at which they are due."""


class _Run:
    """One open image: what is known of its start, and what it does now."""

    def __init__(self) -> None:
        self.known = np.zeros(0, SECTIONS["replay"])
        self.touched: dict[int, int] = {}
        """Chunk: when it was touched first, ms after the open. The record."""
        self.begin_s = 0.0
        self.is_begun = False
        self.is_recording = True
        self.last_new_s = 0.0
        self.looked_s = 0.0
        self.looked_size = 0
        self.is_same = False
        """Whether what is known was learned of this image, or nearly."""
        self.stages: list[list[_Part]] = []
        """The next stage last."""
        self.expected: dict[int, None] = {}
        self.asked = 0
        self.came = 0
        self.foreseen = 0.0
        self.surprises = 0.0
        """New chunks, fading: those expected, and others (none are zero)."""
        self.used = 0.0
        self.judged = 0.0

    def is_over(self, now_s: float) -> bool:
        """Return whether the working set has stopped growing."""
        since_s = now_s - self.begin_s
        if since_s > LONGEST_RECORD_S or len(self.touched) >= MOST_ROWS:
            return True
        if self.touched and now_s - self.last_new_s > _QUIET_S:
            return True
        if now_s - self.looked_s < _LOOK_INTERVAL_S:
            return False
        size = len(self.touched)
        grown = size - self.looked_size
        self.looked_s, self.looked_size = now_s, size
        return since_s > _FIRST_GROWTH_S and grown < _LEAST_GROWTH * size


class Replay:
    """See Arm."""

    name = "replay"

    def __init__(self) -> None:
        self._runs: dict[Image, _Run] = {}

    def opened(self, image: Image, time_s: float) -> Sequence[Wish]:
        """See Arm. Called again where something was taught after the image was opened."""
        run = self._of(image)
        if not run.is_begun:
            run.begin_s = run.last_new_s = run.looked_s = time_s
            run.is_begun = True
        if not len(run.known) or not run.is_recording:
            return NOTHING
        _plan(run, image)
        return self._next_stages(run, image, time_s)

    def observe(self, image: Image, access: Access) -> Sequence[Wish]:
        """See Arm."""
        run = self._runs.get(image)
        if run is None:
            run = self._of(image)
        if not run.is_begun:
            run.begin_s = run.last_new_s = run.looked_s = access.time_s
            run.is_begun = True
        if not run.is_recording and not run.expected:
            return NOTHING
        came = self._take(run, image, access)
        if came and run.stages:
            run.came += came
            return self._next_stages(run, image, access.time_s)
        return NOTHING

    @staticmethod
    def _take(run: _Run, image: Image, access: Access) -> int:
        """Record an access; returns how many chunks were expected."""
        now_s = access.time_s
        came = 0
        if run.is_recording and run.is_over(now_s):
            _end(run)
            return 0
        expected, touched = run.expected, run.touched
        for chunk in range(access.first, access.first + access.count):
            is_new = run.is_recording and chunk not in touched
            if chunk in expected:
                del expected[chunk]
                came += 1
            elif is_new and len(run.known) and not _is_zero(image, chunk):
                run.surprises += 1
            if is_new and len(touched) < MOST_ROWS:
                touched[chunk] = int(max(0.0, now_s - run.begin_s) * 1e3)
                run.last_new_s = now_s
        run.foreseen += came
        if run.foreseen + run.surprises > _LEAD_MEMORY:
            run.foreseen /= 2
            run.surprises /= 2
        return came

    def _next_stages(self, run: _Run, image: Image, now_s: float) -> list[Wish]:
        wishes: list[Wish] = []
        measured = (run.used + _TRUST) / (run.judged + _TRUST)
        free_bytes = _SAME_FREE_BYTES if run.is_same else _FREE_BYTES
        leverage = _SAME_LEVERAGE if run.is_same else _LEVERAGE
        while run.stages:
            allowed = free_bytes + leverage * run.came * image.chunk_bytes
            if run.asked * image.chunk_bytes >= allowed * measured:
                break
            for first, count, confidence, ms in run.stages.pop():
                run.asked += count
                due_s = max(0.0, ms / 1e3 - (now_s - run.begin_s))
                wishes.append(Wish(first, count, confidence * measured, due_s))
        return wishes

    def judged(self, image: Image, chunk: int, was_used: bool) -> None:
        """See Arm."""
        run = self._runs.get(image)
        if run is not None:
            run.judged += 1
            run.used += was_used

    def closed(self, image: Image, time_s: float) -> None:
        """See Arm."""
        self._runs.pop(image, None)

    def record(self, image: Image) -> Rows:
        """Return what was touched this time, so far."""
        return record_of(self._of(image).touched, image)

    def is_over(self, image: Image, now_s: float) -> bool:
        """Return whether the record of an open image is complete; ends it when it is."""
        run = self._runs.get(image)
        if run is None or not run.is_begun:
            return False
        if run.is_recording and run.is_over(now_s):
            _end(run)
        return not run.is_recording

    def leads(self, image: Image) -> bool:
        """Return whether a start of the image that is known goes as it did: most was expected.

        What else could be read next is then most often not: other arms know less. In another
        version they find what was replaced, so there the replay never leads.
        """
        run = self._runs.get(image)
        if run is None or not run.is_recording or not run.is_same:
            return False
        foreseen = run.foreseen + _LEAD_PRIOR_CHUNKS
        return foreseen >= _LEAD_SHARE * (foreseen + run.surprises)

    def learned(self, image: Image) -> Rows | None:
        """See Learner: what was known, and the run of this time as one more."""
        run = self._runs.get(image)
        if run is None:
            return None
        rows = folded(run.known, record_of(run.touched, image), is_whole=not run.is_recording)
        return rows if len(rows) else None

    def taught(self, image: Image, rows: Rows) -> None:
        """See Learner."""
        self._of(image).known = sound(rows)

    def _of(self, image: Image) -> _Run:
        run = self._runs.get(image)
        if run is None:
            run = self._runs[image] = _Run()
        return run


def _is_zero(image: Image, chunk: int) -> bool:
    """Return whether a chunk is all zeros, which no record has."""
    try:
        return not image.keys(chunk, 1).any()
    except CachefsError:  # its table is damaged: a read will say, and mend it
        return True


def _end(run: _Run) -> None:
    """The record is complete, and what was not replayed by now is too late."""
    run.is_recording = False
    run.expected.clear()
    run.stages.clear()


def sound(rows: Rows) -> Rows:
    """Return rows without those that cannot be: each content once, counts that are counts."""
    seen, runs = np.nan_to_num(rows["seen"]), np.nan_to_num(rows["runs"])
    kept = rows[(rows["key"] != 0) & (seen > 0) & (runs >= seen) & (runs < 1e6)]
    _, first = np.unique(kept["key"], return_index=True)
    sane: Rows = kept[np.sort(first)][:MOST_ROWS]
    return sane


def record_of(touched: dict[int, int], image: Image) -> Rows:
    """Return a record of one run as rows, in the order of time."""
    rows = np.zeros(len(touched), SECTIONS["replay"])
    chunks = np.fromiter(touched, np.int64, len(touched))
    rows["key"] = keys_at(image, chunks)
    rows["place"] = np.minimum(chunks, 2**32 - 1)
    rows["time_ms"] = np.minimum(np.fromiter(touched.values(), np.int64, len(touched)), 2**32 - 1)
    rows["seen"] = rows["runs"] = 1
    return sound(rows)


def folded(known: Rows, record: Rows, *, is_whole: bool = True) -> Rows:
    """Return what is known after one more run, which may have ended early."""
    if not len(known):
        return record
    both, at_known, at_record = np.intersect1d(known["key"], record["key"], return_indices=True)
    if not is_whole and len(both) < _LEAST_RUN * len(known):
        return known
    total = float(known["runs"].max()) * _AGEING + 1
    older = known.copy()
    older["seen"] *= _AGEING
    older["runs"] = older["runs"] * _AGEING + 1
    weight = older["seen"][at_known]
    mean_ms = older["time_ms"][at_known] * weight + record["time_ms"][at_record]
    older["time_ms"][at_known] = mean_ms / (weight + 1)
    older["place"][at_known] = record["place"][at_record]
    older["seen"][at_known] += 1
    is_new = np.ones(len(record), np.bool_)
    is_new[at_record] = False
    newer = record[is_new]
    newer["runs"] = total
    rows = np.concatenate((older, newer))
    rows = rows[rows["seen"] >= _FORGOTTEN * rows["runs"]]
    if len(rows) > MOST_ROWS:
        rows = rows[np.argsort(-rows["seen"] / rows["runs"], kind="stable")[:MOST_ROWS]]
    return rows[np.argsort(rows["time_ms"], kind="stable")]


def confidence_of(rows: Rows) -> npt.NDArray[np.float64]:
    """Return how certain each chunk is to be touched: the share of runs, with one as a prior."""
    seen, runs = rows["seen"].astype(np.float64), rows["runs"].astype(np.float64)
    return np.clip((seen + 0.9 * seen / runs) / (runs + 1), 0.0, 1.0) + 0.1 * (seen >= runs) / (
        runs + 1
    )


def _plan(run: _Run, image: Image) -> None:
    """Lay out the stages: ordered by time, merged within a stage."""
    run.is_same = _stayed(run.known, image) >= _SAME_SHARE
    chunks, confidence, ms = _placed(run.known, image)
    certain = confidence >= _LEAST_CONFIDENCE
    if run.touched:  # taught late: what was read already is no news
        certain &= ~np.isin(chunks, np.fromiter(run.touched, np.int64, len(run.touched)))
    chunks, confidence, ms = chunks[certain], confidence[certain], ms[certain]
    run.expected = dict.fromkeys(chunks.tolist())
    run.stages = _staged(chunks, confidence, ms, image.chunk_bytes)
    run.stages.reverse()


def _stayed(known: Rows, image: Image) -> float:
    """Return the share of what is known that lies where it lay."""
    place = known["place"].astype(np.int64)
    return float((image.find(np.ascontiguousarray(known["key"])) == place).mean())


def places_of(rows: Rows, image: Image) -> list[tuple[int, int]]:
    """Return the (first, count) of the chunks that a start probably touches, what is due first."""
    chunks, confidence, ms = _placed(sound(rows), image)
    certain = confidence >= _LEAST_CONFIDENCE
    stages = _staged(chunks[certain], confidence[certain], ms[certain], image.chunk_bytes)
    return [(first, count) for stage in stages for first, count, _, _ in stage]


def _staged(
    chunks: npt.NDArray[np.int64],
    confidence: npt.NDArray[np.float64],
    ms: npt.NDArray[np.int64],
    chunk_bytes: int,
) -> list[list[_Part]]:
    """Return stages that grow, in the order of time."""
    order = np.argsort(ms, kind="stable")
    chunks, confidence, ms = chunks[order], confidence[order], ms[order]
    stages, begin, stage_bytes = [], 0, _FIRST_STAGE_BYTES
    while begin < len(chunks):
        end = begin + max(1, stage_bytes // chunk_bytes)
        part = slice(begin, end)
        stages.append(_stage(chunks[part], confidence[part], ms[part]))
        begin, stage_bytes = end, min(2 * stage_bytes, _MOST_STAGE_BYTES)
    return stages


def _placed(
    known: Rows, image: Image
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Return where what is known lies in an image, how certain it is, and when it is due."""
    found = image.find(np.ascontiguousarray(known["key"]))
    place = known["place"].astype(np.int64)
    confidence = confidence_of(known)
    is_found = found >= 0
    if is_found.any() and (found == place)[is_found].mean() >= _SAME_PLACE:
        replaced = ~is_found & (place < image.chunks)
        found = np.where(replaced, place, found)
        confidence[replaced] *= _REPLACED
    usable = (found >= 0) & (found < image.chunks)
    chunks, first = np.unique(found[usable], return_index=True)
    return chunks, confidence[usable][first], known["time_ms"].astype(np.int64)[usable][first]


def _stage(
    chunks: npt.NDArray[np.int64], confidence: npt.NDArray[np.float64], ms: npt.NDArray[np.int64]
) -> list[_Part]:
    """Return runs of neighbours of about the same confidence, what is due first first."""
    order = np.argsort(chunks)
    level = (confidence[order] * 8).astype(np.int64)
    breaks = (np.diff(chunks[order]) != 1) | (np.diff(level) != 0)
    begins = np.concatenate(([0], np.flatnonzero(breaks) + 1, [len(chunks)]))
    runs = [
        (
            int(chunks[order[a]]),
            b - a,
            float(confidence[order[a:b]].mean()),
            int(ms[order[a:b]].min()),
        )
        for a, b in pairwise(begins.tolist())
    ]
    return sorted(runs, key=lambda run: run[3])
