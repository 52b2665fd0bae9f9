"""Deltas: how the next chunk lies to this one, in words that hold for any image.

A delta up to eight chunks either way is a word of its own; a larger one is a word if it is one of
the last four, so that strides are said in any size; all others are one word.

Streams of one guest lie in different places as a rule: the image is cut into regions, each of which
has a sequence of its own (as Hashemi et al. do with clusters of addresses).
"""

from __future__ import annotations

NEAR = 8
COPIES = 4
WORDS = 2 * NEAR + 1 + COPIES
"""The copies come after those that are near; `OTHER` is the word for 0, which does not occur."""
OTHER = NEAR
FEATURES = WORDS + 3


REGION_CHUNKS = 256


class Deltas:
    """The deltas of one sequence of chunks."""

    __slots__ = ("chunk", "last")

    def __init__(self) -> None:
        self.chunk = -1
        """The last one; -1: none yet."""
        self.last = [0] * COPIES
        """The latest first."""

    def word(self, delta: int) -> int:
        """Return the word for a delta that comes now."""
        if -NEAR <= delta <= NEAR:
            return delta + NEAR
        for back, known in enumerate(self.last):
            if known == delta:
                return 2 * NEAR + 1 + back
        return OTHER

    def take(self, chunks: list[int]) -> tuple[int, int] | None:
        """Go on to the new chunks of one access; returns the delta to the first, and its word.

        None for the first access. Within one there is nothing to predict.
        """
        before, self.chunk = self.chunk, chunks[-1]
        if before < 0:
            return None
        delta = chunks[0] - before
        word = self.word(delta)
        self.last = [delta, *self.last[:-1]]
        return delta, word

    def meaning(self, word: int) -> int:
        """Return the delta that a word means now; 0 if it means none."""
        if word <= 2 * NEAR:
            return word - NEAR
        return self.last[word - 2 * NEAR - 1]


def features_of(delta: int, is_hit: bool) -> list[float]:
    """Return what the network sees beside the word: how large, which way, whether it was here."""
    return [min(abs(delta).bit_length(), 24) / 24, 1.0 if delta > 0 else -1.0, float(is_hit)]
