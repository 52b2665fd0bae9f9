"""What a fetcher does for L2 when nobody waits: write frames, bring chunks that leave L1, probe.

One thread. Its queue has a bound in bytes, and what is over it is dropped: a slow L2 costs its own
contents and never an answer.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence

from cachefs.codec.frame import decode_frame
from cachefs.errors import TierError
from cachefs.model.chunk import chunk_id
from cachefs.tiers.breaker import State
from cachefs.tiers.jobs import Leaving
from cachefs.tiers.l2.breaker import BypassedError, Guarded
from cachefs.tiers.l2.counts import READING, WRITING, Counts
from cachefs.units import MIB

logger = logging.getLogger(__name__)

_BATCH_BYTES = MIB
"""Of frames in one pipeline: about a millisecond of the server's time."""

_BATCH_FRAMES = 256
_WRITE_WAIT_S = 1.0
_MOST_LEAVING = 1024
"""Chunks that wait to be demoted; their slots are filled again soon, so more would be in vain."""

_IDLE_S = 3600.0

NO_FRAME = 0
"""In place of a plain length: these bytes are kept as they are."""

Encode = Callable[[bytes | memoryview], bytes]


class Background:
    """The thread and its queue.

    Args:
        reading: The tier that reads ask; it is probed.
        writing: The tier that frames are written to, on connections of its own; its breaker needs
            no probe, the next frame is it.
        queue_bytes: The bound.
        probe_wait_s: A probe that takes longer has failed.
        encode: Makes L2's frame of plain bytes.
        recodes: Whether it also makes the frames of what comes from the store, which else stay as
            they are there.
        counts: Where all is counted.
        report: Called when the queue has become empty, and after each probe.
    """

    def __init__(
        self,
        reading: Guarded,
        writing: Guarded,
        queue_bytes: int,
        probe_wait_s: float,
        encode: Encode,
        recodes: bool,
        counts: Counts,
        report: Callable[[], None],
    ) -> None:
        self._reading, self._breaker = reading
        self._writing, self._writing_breaker = writing
        self._limit_bytes = queue_bytes
        self._probe_wait_s = probe_wait_s
        self._encode = encode
        self._recodes = recodes
        self._counts = counts
        self._report = report
        self._wake = threading.Condition()
        self._frames: deque[tuple[bytes, bytes, int]] = deque()
        self._leaving: deque[Leaving] = deque()
        self._is_advised = False
        self.queued_bytes = 0
        """Frames that wait, or are being written."""

    def start(self) -> None:
        """Start the thread; it ends with the process."""
        threading.Thread(target=self._run, name="l2-background", daemon=True).start()

    def add(self, frames: Sequence[tuple[bytes, memoryview, int]]) -> None:
        """Queue frames (chunk id, frame, plain length or NO_FRAME) as far as there is room."""
        dropped = 0
        with self._wake:
            for identity, frame, plain_bytes in frames:
                if self.queued_bytes + len(frame) > self._limit_bytes:
                    dropped += 1
                    continue
                self.queued_bytes += len(frame)
                self._frames.append((identity, bytes(frame), plain_bytes))
            self._wake.notify()
        self._counts.add("l2_backfill_dropped", dropped)

    def demote(self, leaving: Sequence[Leaving]) -> None:
        """Queue chunks that leave L1, as far as there is room."""
        with self._wake:
            room = _MOST_LEAVING - len(self._leaving)
            self._leaving.extend(leaving[:room])
            self._wake.notify()
        self._counts.add("l2_demotions_lost", max(0, len(leaving) - room))

    def wake(self) -> None:
        """Let the thread look at the breaker."""
        with self._wake:
            self._wake.notify()

    def _run(self) -> None:
        self._probe()
        while True:
            with self._wake:
                if not (self._frames or self._leaving):
                    wait_s = self._breaker.probe_in_s()
                    if wait_s is None or wait_s > 0:
                        self._wake.wait(_IDLE_S if wait_s is None else wait_s)
            try:
                self._turn()
            except Exception:  # it must go on, whatever a library raises
                logger.exception("the background work for L2 failed")

    def _turn(self) -> None:
        if self._breaker.probe_in_s() == 0:
            self._probe()
        if self._leaving:
            self._demote_some()
        if self._frames:
            self._write_some()
        if not self._frames:
            self._report()

    def _probe(self) -> None:
        was_away = self._breaker.state is not State.CLOSED
        try:
            self._reading.probe(self._probe_wait_s)
            self._counts.went_well(READING)
            if was_away:
                self._writing_breaker.forgive()
                self._counts.went_well(WRITING)
            if not self._is_advised:
                self._counts.advice = self._reading.advice()
                self._is_advised = True
        except TierError as error:
            self._counts.failed(READING, error)
        self._report()

    def _write_some(self) -> None:
        batch: dict[bytes, bytes] = {}
        batch_bytes = taken_bytes = 0
        while self._frames and batch_bytes < _BATCH_BYTES and len(batch) < _BATCH_FRAMES:
            identity, frame, plain_bytes = self._frames.popleft()
            taken_bytes += len(frame)
            batch[identity] = self._recoded(frame, plain_bytes)
            batch_bytes += len(batch[identity])
        try:
            self._put(batch)
        finally:
            with self._wake:
                self.queued_bytes -= taken_bytes

    def _recoded(self, frame: bytes, plain_bytes: int) -> bytes:
        if not self._recodes or plain_bytes == NO_FRAME:
            return frame
        return self._encode(decode_frame(frame, plain_bytes))

    def _put(self, batch: dict[bytes, bytes]) -> int:
        taken = 0
        try:
            taken = self._writing.put(batch, _WRITE_WAIT_S)
            self._counts.went_well(WRITING)
            self._counts.add("l2_backfilled", taken)
        except BypassedError:
            pass
        except TierError as error:
            self._counts.failed(WRITING, error)
        self._counts.add("l2_backfill_dropped", len(batch) - taken)
        return taken

    def _demote_some(self) -> None:
        """Bring to L2 what it has not, and what still lies in its slot."""
        with self._wake:
            leaving = [self._leaving.popleft() for _ in range(min(64, len(self._leaving)))]
        try:
            found = self._writing.touch([chunk.chunk_id for chunk in leaving], _WRITE_WAIT_S)
        except TierError as error:
            if not isinstance(error, BypassedError):
                self._counts.failed(WRITING, error)
            self._counts.add("l2_demotions_lost", len(leaving))
            return
        batch: dict[bytes, bytes] = {}
        for chunk, is_there in zip(leaving, found, strict=True):
            plain = None if is_there else read_slot(chunk)
            if plain is not None:
                batch[chunk.chunk_id] = self._encode(plain)
        taken = self._put(batch) if batch else 0
        brought = sum(found) + taken
        self._counts.add("l2_demoted", brought)
        self._counts.add("l2_demotions_lost", len(leaving) - brought)


def read_slot(chunk: Leaving) -> bytes | None:
    """Return a chunk's bytes from the slot that it is leaving, None if they are gone already."""
    try:
        fd = os.open(chunk.segment, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        plain = os.pread(fd, chunk.plain_bytes, chunk.position)
    except OSError:
        return None
    finally:
        os.close(fd)
    return plain if chunk_id(plain) == chunk.chunk_id else None
