"""Recurrence: what came after this chunk the last time comes again, in the same order.

Temporal streaming (Wenisch et al., STMS, HPCA'09) over content: a bounded log of new chunks, and
where each of them came last. A chunk that is read again opens a trail at that place; every further
chunk that is found on it, also with some left out or in another order, makes it more certain, and
further is looked ahead. Chunks are indexes while the image is open, and contents at rest.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cachefs.policy.prefetch.calibration import Calibration
from cachefs.policy.prefetch.learner import FLOOR, SECTIONS, Rows, keys_at
from cachefs.policy.prefetch.novelty import Novelty
from cachefs.policy.prefetch.seam import NOTHING, Access, Image, Wish
from cachefs.policy.prefetch.wishes import merged

MOST_LOGGED = 1 << 16
"""Chunks of an image: 6 MB of memory."""
_MOST_TRAILS = 8
_WINDOW = 16
"""How far a trail is searched for what was read."""
_FARTHEST = 8
"""Chunks ahead that are wished for on a trail of which all came true."""
_LEVELS = 8
_DEPTHS = 4
_DISTANCES = 4
_KIND_OF_DEPTH = [min(_DEPTHS - 1, ahead // 2) * _DISTANCES for ahead in range(_FARTHEST)]
_KIND_OF_BITS = [min(_DISTANCES - 1, bits // 3) for bits in range(65)]
"""By the bits of how far it is from what was read."""


class _Trail:
    __slots__ = ("at", "is_alive", "level", "mapped")

    def __init__(self, at: int) -> None:
        self.at = at
        """Next position in the log."""
        self.mapped = at
        """All before that is in the map of what is expected."""
        self.level = 0.0
        self.is_alive = True


class _Log:
    """What is known of one image."""

    def __init__(self) -> None:
        self.calibration = Calibration(_LEVELS * _DEPTHS * _DISTANCES)
        self.ring: list[int] = []
        self.size = 0
        """Positions so far; the last MOST_LOGGED are in the ring."""
        self._place: dict[int, int] = {}
        self._trails: list[_Trail] = []
        self._expected: dict[int, tuple[_Trail, int]] = {}

    def follow(self, chunk: int) -> _Trail | None:
        """Take in a new chunk; returns the trail that it is on."""
        trail = None
        found = self._expected.pop(chunk, None)
        if found is not None and found[0].is_alive:
            trail = self._go_on(*found)
        elif (place := self._place.get(chunk)) is not None:
            trail = _Trail(place + 1)
            self._trails.append(trail)
            if len(self._trails) > _MOST_TRAILS:
                self._trails.pop(0).is_alive = False
        self.append(chunk)
        if trail is not None:
            self._map(trail)
        return trail

    def _go_on(self, trail: _Trail, position: int) -> _Trail:
        skipped = position - trail.at
        if skipped >= 0:
            trail.at = position + 1
            trail.level = max(0.0, min(trail.level + 1 - 0.25 * min(skipped, 4), _LEVELS))
        if self._trails[-1] is not trail:
            self._trails.remove(trail)
            self._trails.append(trail)
        return trail

    def _map(self, trail: _Trail) -> None:
        """Expect what is next on a trail."""
        oldest = self.size - MOST_LOGGED
        if trail.at < oldest:
            trail.at = trail.mapped = oldest
        end = min(trail.at + _WINDOW, self.size - 1)
        begin = max(trail.mapped, trail.at)
        if begin >= end:
            return
        expected, ring = self._expected, self.ring
        for position in range(begin, end):
            expected[ring[position % MOST_LOGGED]] = trail, position
        trail.mapped = end
        if len(expected) > 4 * _MOST_TRAILS * _WINDOW:
            self._expected = {
                chunk: (on, position)
                for chunk, (on, position) in expected.items()
                if on.is_alive and position >= on.at - _WINDOW
            }

    def ahead(self, trail: _Trail, count: int) -> list[int]:
        """Return the next chunks on a trail."""
        begin = trail.at
        count = min(count, self.size - 1 - begin)
        at = begin % MOST_LOGGED
        if at + count <= MOST_LOGGED:
            return self.ring[at : at + count]
        return self.ring[at:] + self.ring[: at + count - MOST_LOGGED]

    def append(self, chunk: int) -> None:
        """Take in a chunk that was read, and no more."""
        at = self.size % MOST_LOGGED
        if self.size >= MOST_LOGGED:
            before = self.ring[at]
            if self._place.get(before) == self.size - MOST_LOGGED:
                del self._place[before]
            self.ring[at] = chunk
        else:
            self.ring.append(chunk)
        self._place[chunk] = self.size
        self.size += 1

    def in_order(self) -> list[int]:
        """Return the log, the oldest first."""
        at = self.size % MOST_LOGGED if self.size >= MOST_LOGGED else 0
        return self.ring[at:] + self.ring[:at]


class Recurrence:
    """See Arm."""

    name = "recurrence"

    def __init__(self, novelty: Novelty | None = None, floor: float = FLOOR) -> None:
        self._novelty = novelty or Novelty()
        self._floor = floor
        self._logs: dict[Image, _Log] = {}

    def opened(self, image: Image, time_s: float) -> Sequence[Wish]:
        """See Arm."""
        self._log(image)
        return NOTHING

    def observe(self, image: Image, access: Access) -> Sequence[Wish]:
        """See Arm."""
        fresh = self._novelty.of(image, access)
        if not fresh:
            return NOTHING
        log = self._log(image)
        log.calibration.seen(fresh)
        expected: list[tuple[int, float]] = []
        for chunk in fresh:
            trail = log.follow(chunk)
            if trail is not None:
                expected += self._look_ahead(image, log, trail, chunk)
        return merged(expected, image.chunks) if expected else NOTHING

    def _look_ahead(
        self, image: Image, log: _Log, trail: _Trail, chunk: int
    ) -> list[tuple[int, float]]:
        """Return what is to be said of what comes on a trail, after this chunk."""
        recent = self._novelty.recent(image)
        level = int(trail.level)
        kind = min(level, _LEVELS - 1) * _DEPTHS * _DISTANCES
        ahead = log.ahead(trail, min(_FARTHEST, 2 + level))
        expected = [
            (to, kind + of_depth + _KIND_OF_BITS[abs(to - chunk).bit_length()])
            for to, of_depth in zip(ahead, _KIND_OF_DEPTH, strict=False)
            if to not in recent
        ]
        return log.calibration.expect(expected, self._floor) if expected else []

    def judged(self, image: Image, chunk: int, was_used: bool) -> None:
        """See Arm."""
        log = self._logs.get(image)
        if log is not None:
            log.calibration.judged(chunk, was_used)

    def closed(self, image: Image, time_s: float) -> None:
        """See Arm."""
        self._logs.pop(image, None)
        self._novelty.forget(image)

    def learned(self, image: Image) -> Rows | None:
        """See Learner."""
        log = self._logs.get(image)
        if log is None or not log.size:
            return None
        rows = np.zeros(len(log.ring), SECTIONS[self.name])
        rows["key"] = keys_at(image, np.array(log.in_order(), np.int64))
        known: Rows = rows[rows["key"] != 0]
        return known

    def taught(self, image: Image, rows: Rows) -> None:
        """See Learner."""
        places = image.find(np.ascontiguousarray(rows["key"]))
        log = self._log(image)
        for chunk in places[places >= 0].tolist():
            log.append(chunk)

    def _log(self, image: Image) -> _Log:
        log = self._logs.get(image)
        if log is None:
            log = self._logs[image] = _Log()
        return log
