"""From the lane's records to accesses: a bounded few for each batch, however many reads there were.

Reads that continue each other without a gap become one access, also where readers interleave. What
is left are jumps; of those that were hits only the newest are kept, one for sixteen records, so
that to be observed costs a hit less than a microsecond; misses are kept all.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_LEAST_KEPT = 16
_KEPT_SHARE = 16
"""An access costs the arms 6 to 12 us, and one in so many hits that jump is told to them."""


class Span(NamedTuple):
    """Reads of one reader that continue each other."""

    inode: int
    reader: int
    offset: int
    size_bytes: int
    reads: int
    time_s: float
    is_hit: bool
    is_backward: bool


def condense(records: npt.NDArray[np.void]) -> list[Span]:
    """Return the reads of a batch, (n,) ACCESS_DTYPE, as spans in the order of their beginnings."""
    order = np.lexsort((records["offset"], records["pid"], records["inode"]))
    inode, reader = records["inode"][order], records["pid"][order]
    offset, size = records["offset"][order], records["length"][order].astype(np.uint64)
    continues = (
        (inode[1:] == inode[:-1])
        & (reader[1:] == reader[:-1])
        & (offset[1:] == offset[:-1] + size[:-1])
    )
    begins = np.flatnonzero(np.concatenate(([True], ~continues)))
    ends = np.append(begins[1:], len(order)) - 1
    at_ns = records["at_ns"][order]
    is_hit = np.minimum.reduceat(records["by_lane"][order], begins)
    first_ns = np.minimum.reduceat(at_ns, begins)
    reads = ends - begins + 1
    by_time = np.argsort(first_ns, kind="stable")
    is_jump = (reads[by_time] == 1) & (is_hit[by_time] != 0)
    jumps = np.flatnonzero(is_jump)
    spare = len(jumps) - max(_LEAST_KEPT, len(records) // _KEPT_SHARE)
    if spare > 0:
        is_jump[jumps[spare:]] = False
        by_time = by_time[~is_jump]
    begins, ends = begins[by_time], ends[by_time]
    columns = (
        inode[begins],
        reader[begins],
        offset[begins],
        offset[ends] + size[ends] - offset[begins],
        reads[by_time],
        first_ns[by_time] / 1e9,
        is_hit[by_time] != 0,
        at_ns[begins] > at_ns[ends],
    )
    return [Span(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]
