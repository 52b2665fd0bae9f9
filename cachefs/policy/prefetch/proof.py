"""Proof: whether a start follows what is known of others, or only meets it by chance. Pure.

Who reads at random an image of which much is known touches known chunks all the time. What tells
such a reader from a start is the order: a start touches first what was touched first. So a chunk
that came true speaks for the profile if it lies in the part that was asked for, or not far behind
it; a known chunk from anywhere else speaks against it, as an unknown one does.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_BEYOND_ASKED = 4
_BEYOND_CAME = 2
_SLACK_CHUNKS = 16
"""What lies, in the order of time, among so many times the chunks that were asked for and those
that have come is in order: guests that start do many things at once, and leave some out."""
_CHANCE_CHUNKS = 2
"""So many, and as many as speak against it, come true by chance."""


class Proof:
    """What one start has shown of a profile; places are those in the profile's order of time."""

    __slots__ = ("_against", "_for")

    def __init__(self) -> None:
        self._for = 0
        self._against = 0

    def begin_anew(self, places: npt.NDArray[np.int64], asked: int, surprises: int) -> None:
        """Chunks at these places, (n,), and others that are not known came before the plan."""
        is_early = np.sort(places) < (
            _BEYOND_ASKED * asked + _BEYOND_CAME * np.arange(len(places)) + _SLACK_CHUNKS
        )
        self._for = int(is_early.sum())
        self._against = len(places) - self._for + surprises

    def came(self, place: int, asked: int) -> None:
        """A chunk of the profile was touched, of which so many have been asked for."""
        if place < _BEYOND_ASKED * asked + _BEYOND_CAME * self._for + _SLACK_CHUNKS:
            self._for += 1
        else:
            self._against += 1

    def surprised(self) -> None:
        """A chunk was touched that is not expected."""
        self._against += 1

    @property
    def chunks(self) -> int:
        """How many chunks have come true by more than chance."""
        return min(self._for, 2 * max(0, self._for - self._against - _CHANCE_CHUNKS))
