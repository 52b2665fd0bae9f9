"""Watches a disk that L1 was left for: a read in time, past the page cache, and L1 is used again.

Who leaves it is the reader, after reads that failed or took too long (`L1.health`). While it is
left, chunks come from the next tier and are not kept; what L1 has is not given up.

Concurrency: event loop; the reads that try the disk run in threads, and may hang there.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
import random
from pathlib import Path

import trio

from cachefs.tiers.l1 import L1

logger = logging.getLogger(__name__)

_LOOK_S = 0.25


class DiskWatch:
    """Probes the disk of an L1; a read that takes longer than `patience_s` has failed."""

    def __init__(self, l1: L1, patience_s: float) -> None:
        self._l1 = l1
        self._patience_s = patience_s
        self._one = trio.CapacityLimiter(1)
        """A probe that hangs is one thread, however long; those after it wait for it in vain."""
        l1.health.on_change = self._tell

    async def run(self) -> None:
        """Probe when it is time to, until cancelled."""
        while True:
            await trio.sleep(_LOOK_S)
            if self._l1.health.allows_probe():
                await self._probe()

    async def _probe(self) -> None:
        paths = [slots.segment.path for slots in self._l1.classes.values() if slots.extents]
        try:
            if paths:
                with trio.fail_after(self._patience_s):
                    await trio.to_thread.run_sync(
                        _read_some,
                        random.choice(paths),
                        abandon_on_cancel=True,
                        limiter=self._one,
                    )
        except (OSError, trio.TooSlowError):
            self._l1.health.failed()
        else:
            self._l1.health.succeeded()

    def _tell(self) -> None:
        is_left = self._l1.is_left
        self._l1.metrics.l1_left = int(is_left)
        logger.warning(
            "the disk of L1 %s", "fails or hangs: L1 is left alone" if is_left else "is back"
        )


def _read_some(path: Path) -> None:
    """Read a page from somewhere in a file, from the disk where the file system can say so."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        pages = max(1, os.fstat(fd).st_size // mmap.PAGESIZE)
        with mmap.mmap(-1, mmap.PAGESIZE) as page:
            os.preadv(fd, [page], random.randrange(pages) * mmap.PAGESIZE)
    finally:
        os.close(fd)
