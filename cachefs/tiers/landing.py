"""Landing: verified chunks are written into their slots, neighbours in one go.

A sequential fetch fills slots that lie side by side, and one large write costs the kernel less than
many small ones (docs/decisions/0010), so chunks are collected into runs.

Knows nothing of frames, ids or stores: whoever adds a chunk has verified it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence

from cachefs.tiers.jobs import Wanted
from cachefs.units import KIB

Plain = bytes | memoryview

MOST_RUN_BYTES = 512 * KIB
"""Half of a usual second-level cache, so that a write finds there what was just decoded; measured,
1 MiB is no faster. A run is held in memory until it is written."""

Written = Callable[[int, Plain, OSError | None], None]
"""Told of each chunk: its member number, its bytes, and why it could not be written, if so."""


class SlotWriter:
    """Writes into segments, which it keeps open: there are at most eleven. From any thread."""

    def __init__(self) -> None:
        self._segments: dict[str, int] = {}
        self._opening = threading.Lock()

    def write(self, segment: str, position: int, parts: Sequence[Plain]) -> None:
        """Write parts one after another from a position.

        Raises:
            OSError: not all of them are written.
        """
        fd = self._segments.get(segment)
        if fd is None:
            fd = self._open(segment)
        left = [memoryview(part) for part in parts]
        while left:
            written = os.pwritev(fd, left, position)
            if not written:
                raise OSError(5, "the disk takes no more")
            position += written
            while left and written >= len(left[0]):
                written -= len(left.pop(0))
            if left:
                left[0] = left[0][written:]

    def _open(self, segment: str) -> int:
        with self._opening:
            fd = self._segments.get(segment)
            if fd is None:
                fd = self._segments[segment] = os.open(segment, os.O_WRONLY | os.O_CLOEXEC)
            return fd


class Landing:
    """The chunks of one range on their way into slots. `flush` at its end. One thread."""

    def __init__(self, writer: SlotWriter, written: Written) -> None:
        self._writer = writer
        self._written = written
        self._run: list[tuple[int, Wanted, Plain]] = []
        self._run_bytes = 0

    def add(self, member: int, wanted: Wanted, plain: Plain) -> None:
        """Take a verified chunk; it is written with its neighbours, at the latest by `flush`."""
        if self._run:
            first = self._run[0][1]
            follows = (
                wanted.segment == first.segment
                and wanted.position == first.position + self._run_bytes
            )
            if not follows or self._run_bytes + len(plain) > MOST_RUN_BYTES:
                self.flush()
        self._run.append((member, wanted, plain))
        self._run_bytes += len(plain)

    def flush(self) -> None:
        """Write what was taken."""
        run, self._run, self._run_bytes = self._run, [], 0
        if not run:
            return
        first = run[0][1]
        try:
            self._writer.write(first.segment, first.position, [plain for _, _, plain in run])
        except OSError as error:
            self._one_by_one(run, error)
            return
        for member, _, plain in run:
            self._written(member, plain, None)

    def _one_by_one(self, run: list[tuple[int, Wanted, Plain]], error: OSError) -> None:
        """A bad place on the disk must not take the neighbours of its chunk along."""
        for member, wanted, plain in run:
            failure: OSError | None = error
            if len(run) > 1:
                try:
                    self._writer.write(wanted.segment, wanted.position, [plain])
                    failure = None
                except OSError as again:
                    failure = again
            self._written(member, plain, failure)
