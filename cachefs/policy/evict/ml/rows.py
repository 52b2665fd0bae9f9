"""The row of a chunk: all that is known of it, 60 bytes.

Times are counts of uses of one class of slots: a gap of 1,000 is 1,000 uses of any chunk.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

ROW = np.dtype(
    [
        ("key", np.uint64),
        ("place", np.int64),
        ("last", np.int64),
        ("born", np.int64),
        ("gaps", np.float16, 3),
        ("short", np.float32),
        ("long", np.float32),
        ("span", np.uint32),
        ("uses", np.uint16),
        ("frame", np.float16),
        ("cost", np.float16),
        ("is_unused", np.bool_),
    ]
)
Rows = npt.NDArray[np.void]
"""(chunks,) ROW."""

Times = npt.NDArray[np.int64]

NO_GAP = 32.0
"""log2 of a gap that was not seen yet: longer than any."""

_MIX = np.uint64(0x9E3779B97F4A7C15)


def hashed(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Return 44 mixed bits of each key."""
    return ((keys * _MIX) >> np.uint64(20)).astype(np.int64)


def log2(count: Times) -> npt.NDArray[np.float32]:
    """Return the logarithms, 0 for what is below 1."""
    return np.log2(np.maximum(count, 1), dtype=np.float32)


def runs(values: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], ...]:
    """Return each value once, where it is first and last, and how often it is there."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    is_begin = np.empty(len(values), np.bool_)
    is_begin[0] = True
    np.not_equal(ordered[1:], ordered[:-1], out=is_begin[1:])
    begin = np.flatnonzero(is_begin)
    end = np.append(begin[1:], len(values))
    return ordered[begin], order[begin], order[end - 1], end - begin
