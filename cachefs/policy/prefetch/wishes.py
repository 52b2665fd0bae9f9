"""Single chunks as wishes: neighbours in a row become one."""

from __future__ import annotations

from collections.abc import Iterable

from cachefs.policy.prefetch.seam import Wish


def merged(expected: Iterable[tuple[int, float]], chunks: int, due_s: float = 0.0) -> list[Wish]:
    """Return wishes for chunks with their confidences, in this order, within an image.

    A run has the confidence of its least certain chunk.
    """
    wishes: list[Wish] = []
    first, count, confidence = -1, 0, 1.0
    for chunk, certain in expected:
        if not 0 <= chunk < chunks:
            continue
        if count and chunk == first + count:
            count += 1
            confidence = min(confidence, certain)
            continue
        if count:
            wishes.append(Wish(first, count, confidence, due_s))
        first, count, confidence = chunk, 1, certain
    if count:
        wishes.append(Wish(first, count, confidence, due_s))
    return wishes
