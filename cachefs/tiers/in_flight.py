"""How many small requests a fetcher has under way at once, as the time of their answers says. Pure.

A store that is far answers many as quickly as one, so more of them at once are more in a second. As
soon as they wait for each other, at the server, on the link or for the fetcher's processor, more
of them only make each take longer. What tells the two apart is the time of an answer beside the
shortest that was seen lately (docs/decisions/0034).
"""

from __future__ import annotations

from math import sqrt

from cachefs.store.s3_settings import S3Settings
from cachefs.units import KIB

SMALL_JOB_BYTES = 256 * KIB
"""A job of at most so many plain bytes waits for the store, and for little else."""

_PATIENCE = 1.5
"""Answers that take so many times the shortest do not wait for each other yet."""

_MEMORY = 16
"""The mean of the answers' times fades at this rate: about what one round has."""

_FLOOR_S = 60.0
"""The shortest time is that of between one and two such whiles: a store may become farther. With
each the limit begins anew, or the shortest would in time be one of answers that had waited."""


class InFlight:
    """A limit between two bounds. It rises only while it is used, by the gradient of TCP Vegas."""

    def __init__(self, least: int, most: int) -> None:
        self._least = least
        self._most = max(least, most)
        self._limit = float(least)
        self._mean_s = 0.0
        self._floors_s: tuple[float, float] = (0.0, 0.0)
        """Of the while before, and of this one; 0: none yet."""
        self._floor_since_s = 0.0
        self._answers = 0
        """Since the limit was changed."""

    @property
    def limit(self) -> int:
        """How many may be under way."""
        return int(self._limit)

    def answered(self, duration_s: float, under_way: int, now_s: float) -> None:
        """Learn from a small request that succeeded.

        Args:
            duration_s: How long the answer took.
            under_way: How many there were, this one among them.
            now_s: On any clock.
        """
        floor_s = self._note_floor(duration_s, now_s)
        self._mean_s = self._mean_s or duration_s
        self._mean_s += (duration_s - self._mean_s) / _MEMORY
        self._answers += 1
        if self._answers < self._limit:
            return
        self._answers = 0
        share = min(1.0, max(0.5, _PATIENCE * floor_s / self._mean_s))
        wanted = self._limit * share
        if under_way * 2 > self._limit:
            wanted += sqrt(self._limit)
        self._limit = min(max(wanted, self._least), self._most)

    def failed(self) -> None:
        """Learn from an outage: whoever says that he has too much to do gets less."""
        self._limit = max(self._limit / 2, self._least)
        self._answers = 0

    def _note_floor(self, duration_s: float, now_s: float) -> float:
        before_s, floor_s = self._floors_s
        if not floor_s or now_s - self._floor_since_s > _FLOOR_S:
            before_s, floor_s, self._floor_since_s = floor_s, duration_s, now_s
            self._limit, self._mean_s, self._answers = float(self._least), 0.0, 0
        floor_s = min(floor_s, duration_s)
        self._floors_s = (before_s, floor_s)
        return min(before_s or floor_s, floor_s)


def most_in_flight(s3: S3Settings, ahead_places: int, *, has_l2: bool) -> int:
    """Return how many jobs that somebody waits for a fetcher does at once: a connection each.

    An L2 is asked by few at once (`l2.requests`), and what it cannot take goes past it: there the
    limit does not grow.
    """
    if has_l2:
        return s3.requests_in_flight
    return max(s3.requests_in_flight, s3.connections - ahead_places)
