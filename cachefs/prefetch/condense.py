"""From the lane's records to accesses: a bounded few for each batch, however many reads there were.

Reads that continue each other without a gap become one access, also where readers interleave. What
is left are jumps; of those that were hits only the newest are kept, one for sixteen records, so
that to be observed costs a hit less than a microsecond. Of all hits about three hundred a second
are kept, so that all together cost a few percent of a core, however many the lane answers. Misses
are kept all.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_LEAST_KEPT = 16
_KEPT_SHARE = 16
"""One in so many hits that jump is told to the arms."""

_HITS_PER_S = 300
"""Spans of hits that are told in a second; each costs the arms 90 us beside a busy lane, which
shares the processor's caches, and a tenth of that alone."""
_MOST_SAVED = 50
"""Of those not used: what is told at once holds up the event loop, for 2 ms at most."""

_ALL = 1 << 32


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


class Condenser:
    """Condenses batch after batch, on the clock of the accesses."""

    def __init__(self) -> None:
        self._allowed = float(_MOST_SAVED)
        self._as_of_ns = 0
        self._missed_chunks = 0

    def spans(self, records: npt.NDArray[np.void], missed_chunks: int) -> list[Span]:
        """Return the reads of a batch, (n,) ACCESS_DTYPE, as `condense` does.

        `missed_chunks`: by all reads until now. Where the lane does not answer, most of what it
        passes on are hits all the same.
        """
        if not len(records):
            return []
        now_ns = int(records["at_ns"].max())
        if now_ns > self._as_of_ns:
            earned = (now_ns - self._as_of_ns) / 1e9 * _HITS_PER_S
            self._allowed = min(_MOST_SAVED, self._allowed + earned)
            self._as_of_ns = now_ns
        missed, self._missed_chunks = missed_chunks - self._missed_chunks, missed_chunks
        most_misses = max(_LEAST_KEPT, 2 * missed)
        spans = condense(records, int(self._allowed), most_misses)
        misses = min(most_misses, sum(not span.is_hit for span in spans))
        self._allowed = max(0.0, self._allowed - (len(spans) - misses))
        return spans


def _kept(
    reads: npt.NDArray[np.int64], is_hit: npt.NDArray[np.bool_], most_hits: int, most_misses: int
) -> npt.NDArray[np.bool_]:
    """Return which spans are kept, (n,): all misses; the longest runs and the newest jumps."""
    misses = np.flatnonzero(~is_hit)
    if len(misses) > most_misses:
        is_hit = is_hit.copy()
        is_hit[misses[: len(misses) - most_misses]] = True
    kept = np.ones(len(reads), np.bool_)
    jumps = np.flatnonzero(is_hit & (reads == 1))
    runs = np.flatnonzero(is_hit & (reads > 1))
    most_jumps = min(most_hits, max(_LEAST_KEPT, int(reads.sum()) // _KEPT_SHARE))
    most_runs = most_hits - min(len(jumps), most_jumps, most_hits // 2)
    if len(runs) > most_runs:  # many readers; or they jump so much that some meet by chance
        shortest = np.argsort(reads[runs], kind="stable")[: len(runs) - most_runs]
        kept[runs[shortest]] = False
    most_jumps = min(most_jumps, most_hits - min(len(runs), most_runs))
    kept[jumps[: max(0, len(jumps) - most_jumps)]] = False
    return kept


def condense(
    records: npt.NDArray[np.void], most_hits: int = _ALL, most_misses: int = _ALL
) -> list[Span]:
    """Return the reads of a batch, (n,) ACCESS_DTYPE, as spans in the order of their beginnings.

    Of runs of hits at most `most_hits`, the longest; of hits that jump as many, the newest. What
    the lane has not answered is a miss, the newest `most_misses` of them.
    """
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
    by_time = by_time[_kept(reads[by_time], is_hit[by_time] != 0, most_hits, most_misses)]
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
