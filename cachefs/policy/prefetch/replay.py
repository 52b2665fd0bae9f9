"""Record and replay: what a guest touches in the first minutes is fetched the next time, in order.

As REAP does it for memory snapshots (Ustiugov et al., ASPLOS'21), but by content, and of several
kinds of starts the one that this one is like (starts.py). A replay comes in stages that grow, each
as soon as the guest has touched enough of those before: a file that is opened only to be looked at,
or a record of something else, costs the first stages.

A record is taken until the working set stops growing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cachefs.errors import CachefsError
from cachefs.policy.prefetch.known import Known, Places
from cachefs.policy.prefetch.learner import MOST_ROWS, SECTIONS, Rows
from cachefs.policy.prefetch.proof import Proof
from cachefs.policy.prefetch.seam import NOTHING, Access, Image, Wish
from cachefs.policy.prefetch.starts import LEAST_CONFIDENCE, folded, record_of, sound

LONGEST_RECORD_S = 600.0
_QUIET_S = 30.0
"""Without a new chunk for so long, the working set has stopped growing."""
_LOOK_INTERVAL_S = 10.0
_LEAST_GROWTH = 0.02
"""In that interval, of all: less is no growth; not before the first minute is over."""
_FIRST_GROWTH_S = 60.0

_FREE_BYTES = 2**20
"""Of stages that need no evidence."""
_MOST_PLANS = 16
"""Each looks at all that is known: a profile without sense must not make one at each touch."""
_LEVERAGE = 8
"""Each byte that came true lets so many more be wished for."""
_SURE_CHUNKS = 16
_SURE_LEVERAGE = 32
"""The same where the profile is of this image, so many came true, and the start goes as it is
known: a resume is over before there is evidence of most of it."""
_TRUST = 16.0

_LEAD_PRIOR_CHUNKS = 32
_LEAD_SHARE = 0.8
_LEAD_MEMORY = 256
"""So much of about so many new chunks has to be expected: then a start goes as it is known. The
kernel's readahead makes one of twelve new in the second resume of the same snapshot (measured)."""


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
        self.at: Known | None = None
        """The same, where it lies; while the start goes on."""
        self.is_touched = self.is_asked = np.zeros(0, np.bool_)
        """By the rows of what is known."""
        self.stages: list[Places] = []
        """The next stage last."""
        self.expected: dict[int, int] = {}
        """Chunk: its place in the order of time."""
        self.proof = Proof()
        self.strange = 0
        """Touched and not in the profile (none are zero)."""
        self.asked = 0
        self.came = 0
        self.turns = 1
        """How often it turned out to be like another start, and once."""
        self.more: list[int] = []
        """Rows that have come to be expected since the last plan."""
        self.foreseen = 0.0
        self.surprises = 0.0
        """New chunks, fading: those expected, and others (none are zero)."""
        self.used = 0.0
        self.judged = 0.0

    def goes_as_known(self, prior_chunks: int) -> bool:
        """Return whether the profile is of this image, and most of what is new was expected."""
        foreseen = self.foreseen + prior_chunks
        is_same = self.at is not None and self.at.is_same
        return is_same and foreseen >= _LEAD_SHARE * (foreseen + self.surprises)

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
        if not len(run.known):
            return NOTHING
        return self.knows(image, Known(run.known, image), time_s)

    def knows(self, image: Image, known: Known, time_s: float) -> Sequence[Wish]:
        """Teach what was found in an image already: that takes long, and may be done elsewhere."""
        run = self._of(image)
        run.known = known.taught
        if not run.is_recording:
            return NOTHING
        _place(run, known, image)
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
        run.came += came
        if run.turns < _MOST_PLANS and run.at is not None and run.at.likeness.has_moved():
            run.turns += 1
            _plan(run, image)
        elif run.more:
            _add(run, image)
        elif not came:
            return NOTHING
        return self._next_stages(run, image, access.time_s) if run.stages else NOTHING

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
            place = expected.pop(chunk, None)
            if place is not None:
                came += 1
                run.proof.came(place, run.asked)
            elif is_new and len(run.known) and not _is_zero(image, chunk):
                run.surprises += 1
                run.proof.surprised()
                run.strange += run.at is not None and chunk not in run.at.row_of
            if is_new and len(touched) < MOST_ROWS:
                touched[chunk] = int(max(0.0, now_s - run.begin_s) * 1e3)
                run.last_new_s = now_s
                _believe(run, chunk)
        run.foreseen += came
        if run.foreseen + run.surprises > _LEAD_MEMORY:
            run.foreseen /= 2
            run.surprises /= 2
        return came

    def _next_stages(self, run: _Run, image: Image, now_s: float) -> list[Wish]:
        wishes: list[Wish] = []
        measured = (run.used + _TRUST) / (run.judged + _TRUST)
        is_sure = run.came >= _SURE_CHUNKS and run.goes_as_known(prior_chunks=0)
        leverage = _SURE_LEVERAGE if is_sure else _LEVERAGE
        while run.stages and run.at is not None:
            allowed = _FREE_BYTES + leverage * run.proof.chunks * image.chunk_bytes
            if run.asked * image.chunk_bytes >= allowed * measured:
                break
            stage = run.stages.pop()
            run.asked += len(stage)
            run.is_asked[stage] = True
            for first, count, confidence, ms in run.at.parts(stage):
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
        return run is not None and run.is_recording and run.goes_as_known(_LEAD_PRIOR_CHUNKS)

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
    run.at = None
    run.more.clear()


def _place(run: _Run, known: Known, image: Image) -> None:
    """Plan by what is known and what was touched already: it was taught late."""
    run.at = known
    run.is_touched = np.zeros(len(known.rows), np.bool_)
    run.is_asked = run.is_touched.copy()
    for chunk in run.touched:
        _believe(run, chunk)
    run.strange = sum(
        chunk not in known.row_of and not _is_zero(image, chunk) for chunk in run.touched
    )
    known.likeness.has_moved()
    run.came = int((run.is_touched & (known.confidence() >= LEAST_CONFIDENCE)).sum())
    run.foreseen += run.came
    _plan(run, image)


def _plan(run: _Run, image: Image) -> None:
    """Lay out the stages of what a start like this one touches, and did not yet."""
    at = run.at
    assert at is not None
    run.more.clear()
    is_certain = at.confidence() >= LEAST_CONFIDENCE
    places = at.in_order(is_certain)
    came = places[run.is_touched[is_certain]]
    surprises = run.strange + int((run.is_touched & ~is_certain).sum())
    run.proof.begin_anew(came, run.asked, surprises)
    certain = is_certain & ~run.is_touched
    places = places[~run.is_touched[is_certain]]
    run.expected = dict(zip(at.chunks[certain].tolist(), places.tolist(), strict=True))
    run.stages = at.staged(np.flatnonzero(certain & ~run.is_asked), image.chunk_bytes)
    run.stages.reverse()


def _add(run: _Run, image: Image) -> None:
    """Let what has come to be expected be the next stages."""
    at, rows = run.at, np.array(run.more)
    assert at is not None
    run.more.clear()
    is_news = ~run.is_touched[rows] & ~run.is_asked[rows]
    rows = rows[is_news & (at.confidence(rows) >= LEAST_CONFIDENCE)]
    run.expected.update(dict.fromkeys(at.chunks[rows].tolist(), 0))
    run.stages += reversed(at.staged(rows, image.chunk_bytes))


def _believe(run: _Run, chunk: int) -> None:
    """A chunk was touched for the first time: it says what this start is like."""
    at = run.at
    if at is not None and (row := at.row_of.get(chunk)) is not None:
        run.is_touched[row] = True
        run.more += at.touched(row).tolist()
