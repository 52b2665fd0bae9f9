"""The row of a chunk: all that is known of it, in 36 bytes.

Times are counts of uses of one class of slots: a gap of 1,000 is 1,000 uses of any chunk. A row has
their lowest 32 bits (clock.py). What a model learns from needs no more digits than the rows have:
it sorts every figure into 255 bins at most.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cachefs.policy.evict.seam import Arrival

ROW = np.dtype(
    [
        ("key", np.uint64),
        ("where", np.uint64),  # place and span
        ("last", np.uint32),
        ("born", np.uint32),
        ("gaps", np.uint8, 3),
        ("short", np.float16),
        ("long", np.float16),
        ("uses", np.uint16),
        ("frame", np.uint8),
        ("cost", np.uint8),
        ("is_unused", np.bool_),
    ]
)
Rows = npt.NDArray[np.void]
"""(chunks,) ROW."""

Times = npt.NDArray[np.int64]
Figures = npt.NDArray[np.float32]

NO_GAP = 32.0
"""log2 of a gap that was not seen yet: longer than any."""

MOST_OFTEN = 60_000.0
"""A float16 has no more. Over 2,048 it does not count single uses: such chunks are not given up."""

_SPAN_BITS = 24
"""A frame has 4 MiB and its head at most."""
_PER_GAP = 255 / NO_GAP
_PER_FRAME = 128.0
_PER_COST = 64.0
_MIX = np.uint64(0x9E3779B97F4A7C15)


def rows_of(arrivals: Sequence[Arrival]) -> Rows:
    """Return rows of chunks that come in, with nothing of what they did before."""
    key, place, span, unused, cost, frame = zip(*arrivals, strict=True)
    rows = np.zeros(len(arrivals), ROW)
    rows["key"] = key
    spans = np.minimum(np.array(span, np.uint64), (1 << _SPAN_BITS) - 1)
    rows["where"] = np.array(place, np.uint64) << np.uint64(_SPAN_BITS) | spans
    rows["is_unused"] = unused
    rows["cost"] = _coded(np.array(cost), _PER_COST)
    rows["frame"] = _coded(np.array(frame), _PER_FRAME)
    rows["gaps"] = _coded(NO_GAP, _PER_GAP)
    return rows


def arrival_of(row: np.void) -> Arrival:
    """Return what was said of a chunk when it came in."""
    return Arrival(
        int(row["key"]),
        int(row["where"]) >> _SPAN_BITS,
        int(row["where"]) & ((1 << _SPAN_BITS) - 1),
        cost=float(row["cost"]) / _PER_COST,
        frame_share=float(row["frame"]) / _PER_FRAME,
    )


def places(rows: Rows) -> npt.NDArray[np.int64]:
    """Return where chunks lie among others."""
    return (rows["where"] >> np.uint64(_SPAN_BITS)).astype(np.int64)


def spans(rows: Rows) -> npt.NDArray[np.int64]:
    """Return how far behind each chunk the next one lies."""
    return (rows["where"] & np.uint64((1 << _SPAN_BITS) - 1)).astype(np.int64)


def gaps(rows: Rows) -> Figures:
    """Return log2 of the last gaps: (chunks, 3)."""
    return rows["gaps"] * np.float32(1 / _PER_GAP)


def coded_gaps(gap: Figures) -> npt.NDArray[np.uint8]:
    """Return logarithms of gaps as rows have them."""
    return _coded(gap, _PER_GAP)


def costs(rows: Rows) -> Figures:
    """Return what fetching each again takes, compared with a fetch from the store."""
    return rows["cost"] * np.float32(1 / _PER_COST)


def frame_shares(rows: Rows) -> Figures:
    """Return stored size / plain size."""
    return rows["frame"] * np.float32(1 / _PER_FRAME)


def hashed(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Return 44 mixed bits of each key."""
    return ((keys * _MIX) >> np.uint64(20)).astype(np.int64)


def log2(count: Times) -> Figures:
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


def _coded(
    figures: Figures | npt.NDArray[np.float64] | float, per_one: float
) -> npt.NDArray[np.uint8]:
    return np.rint(np.clip(np.asarray(figures) * per_one, 0, 255)).astype(np.uint8)
