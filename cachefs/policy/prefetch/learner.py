"""What arms that learn share: what they know at rest, by content.

While an image is open, an arm knows its chunks by index, because that is fast. What it has learned
leaves and comes back as rows of content keys, so that it holds for another version of the image and
for others that share content with it.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cachefs.policy.prefetch.seam import Arm, Image, Keys

Rows = npt.NDArray[np.void]
"""(n,) of one of the types in SECTIONS."""

FLOOR = 0.7
"""Arms say nothing that is less certain: what comes true is more than 0.85 on the whole then."""

CAUTIOUS_FLOOR = 0.8
"""Of arms that see the same as a better one: what they add is less certain than what they know."""

REPLAY: list[Any] = [
    ("key", "<u8"),
    ("place", "<u4"),  # index in the image in which it was seen last
    ("time_ms", "<u4"),  # after the open, mean
    ("which", "<u2"),  # of the last 16 starts touched it, the newest in the lowest bit
]
RECURRENCE: list[Any] = [("key", "<u8")]
MARKOV: list[Any] = [("before", "<u8"), ("key", "<u8"), ("next", "<u8"), ("count", "<f4")]
ASSOCIATION: list[Any] = [("key", "<u8"), ("next", "<u8"), ("count", "<f4"), ("of", "<f4")]

SECTIONS: dict[str, np.dtype[np.void]] = {
    "replay": np.dtype(REPLAY),
    "recurrence": np.dtype(RECURRENCE),
    "markov": np.dtype(MARKOV),
    "association": np.dtype(ASSOCIATION),
}
"""By the name of the arm."""

MOST_ROWS = 1 << 18
"""Of a section: at most 6 MiB, of which zstd leaves a half or less."""


class Learner(Arm, Protocol):
    """An arm whose knowledge outlives the image being open."""

    def learned(self, image: Image) -> Rows | None:
        """Return what is known of an open image, None if that is nothing."""
        ...

    def taught(self, image: Image, rows: Rows) -> None:
        """Take over what was known of an image like this one, before `opened`."""
        ...


def keys_at(image: Image, chunks: npt.NDArray[np.int64]) -> Keys:
    """Return the content keys of chunks anywhere in an image, (n,); 0 beyond its end."""
    keys = np.zeros(len(chunks), np.uint64)
    if not len(chunks):
        return keys
    order = np.argsort(chunks, kind="stable")
    placed = chunks[order]
    begins = np.flatnonzero(np.diff(placed, prepend=placed[0] - 2) > 1)
    for begin, end in zip(begins, [*begins[1:], len(placed)], strict=True):
        first, last = int(placed[begin]), int(placed[end - 1])
        last = min(last, image.chunks - 1)
        if first < 0 or last < first:
            continue
        run = image.keys(first, last - first + 1)
        inside = placed[begin:end] <= last
        keys[order[begin:end][inside]] = run[placed[begin:end][inside] - first]
    return keys
