"""Which chunks from the store are worth a place in L2: all but those of one-off scans.

The rule, on the packs that misses are read from: a miss that lies within 1 MiB of where the last
miss in its pack ended continues a run; a run that is longer than the limit is a scan, and the rest
of it is not kept. A run that begins at the start of a pack continues the longest of the last
runs, because an image goes on from pack to pack. What boots and what is read at random never gets
near the limit; the first bytes of a scan do go into L2, up to the limit.

Packs, not images: frames lie in packs in the order of their image, and only the misses count,
whoever reads. It errs to the side of keeping: a scan that jumps is not seen.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from cachefs.units import KIB, MIB

_NEAR_BYTES = MIB
"""Readahead and several readers bring neighbours out of order; they are not further apart."""

_PACK_START_BYTES = 256 * KIB
_RUNS = 256
"""Packs to remember: 4 GiB of frames at 16 MiB each, and 30 KB of memory."""

_LAST_RUNS = 8


@dataclass(slots=True)
class _Run:
    end: int
    size_bytes: int


class ScanFilter:
    """Tells scans from other misses; a limit of 0 bytes finds none."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._runs: OrderedDict[bytes, _Run] = OrderedDict()

    def is_scan(self, pack: bytes, offset: int, frame_bytes: int) -> bool:
        """Count a miss; return whether it is part of a scan."""
        if not self._limit_bytes:
            return False
        run = self._runs.get(pack)
        if run is None or not -_NEAR_BYTES <= offset - run.end <= _NEAR_BYTES:
            run = self._runs[pack] = _Run(offset, self._inherited_bytes(offset))
        run.end = max(run.end, offset + frame_bytes)
        run.size_bytes += frame_bytes
        self._runs.move_to_end(pack)
        if len(self._runs) > _RUNS:
            self._runs.popitem(last=False)
        return run.size_bytes > self._limit_bytes

    def _inherited_bytes(self, offset: int) -> int:
        if offset > _PACK_START_BYTES:
            return 0
        last = list(self._runs.values())[-_LAST_RUNS:]
        return max((run.size_bytes for run in last), default=0)
