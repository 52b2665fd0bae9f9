"""The read path: bytes of an image from L1, or from the tiers below.

A hit is one synchronous step: chunk index -> chunk id (table) -> placement (residency) -> preadv
from the slot. It takes no await, no thread, no lock and no decompression. What that step can't
answer (a miss, a page that is not in the page cache, a chunk that has to be verified first) takes
the long way.

Concurrency: event loop only. A hit fills a buffer that is valid until the next one is asked for:
its reply leaves before anything else runs on this thread. Everything that awaits builds its own
bytes.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import lmdb
import trio

from cachefs.errors import CachefsError, CorruptError, DeadlineError
from cachefs.index.manifest_table import ManifestTable
from cachefs.index.residency import Placement
from cachefs.metrics import Metrics
from cachefs.model.chunk import ChunkRef, chunk_id
from cachefs.tiers.board import NO_INODE
from cachefs.tiers.flight import Flight
from cachefs.tiers.l1 import L1
from cachefs.tiers.stack import Stack
from cachefs.units import MIB

logger = logging.getLogger(__name__)

MAX_READ_BYTES = MIB
"""FUSE asks for at most this at once."""

_MOST_HINTS = 16 * 1024
"""About 5 MB; 1 GiB of chunks of 64 KiB."""

_MOST_WAITING = 2048
"""Reads that may wait here before those that can wait elsewhere do; half of what the FUSE session
has tasks for, so that an image whose readers hold on leaves room for the others."""

_DISK_THREADS = 32
"""Slot reads that wait for the disk at the same time: the queue depth that a fast SSD wants."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """A part of one chunk that a read wants: `start` within the chunk, its length."""

    index: int
    start: int
    size_bytes: int


class Reader:
    """Reads images through L1 and the stack.

    `buffer` gives a hit its buffer of so many bytes; without it one buffer serves all. A slot that
    the disk does not give within `disk_patience_s` is left, and its chunk comes from the next tier.
    """

    def __init__(
        self,
        l1: L1,
        stack: Stack,
        metrics: Metrics,
        deadline_s: float,
        *,
        verify_reads: bool,
        buffer: Callable[[int], memoryview] | None = None,
        disk_patience_s: float = 1.0,
    ) -> None:
        self._l1 = l1
        self._stack = stack
        self._metrics = metrics
        self._deadline_s = deadline_s
        self._verify_reads = verify_reads
        self._disk_patience_s = disk_patience_s
        self._buffer = buffer or _one_buffer()
        self._hints: dict[tuple[int, int], tuple[int, int, int]] = {}
        """Places (fd, position, slot) of chunks, by table and index, true while `L1.drops` was
        what it was: so a small read in a hot chunk asks neither table nor residency."""
        self._hints_as_of = l1.drops
        self._disk = trio.CapacityLimiter(_DISK_THREADS)
        self._stalled_since_s = 0.0
        """Since when there has been a read that waits, while there is one."""

    def read_hit(
        self, table: ManifestTable, offset: int, size_bytes: int, inode: int = NO_INODE
    ) -> memoryview | None:
        """Return the bytes of an image if L1 and the page cache have them now, None if not.

        With `inode` the board is told where its chunks are. The result is valid until the next
        call. Never raises: what is wrong, `read` will say.
        """
        if self._verify_reads:
            return None
        size_bytes = max(0, min(size_bytes, table.size_bytes - offset))
        try:
            buffer = self._buffer(size_bytes)
            zeros = 0 if self._fill_by_hint(table, offset, buffer) else None
            if zeros is None:
                zeros = self._fill(table, offset, buffer, inode)
        except (CachefsError, OSError, lmdb.Error):
            return None
        if zeros is None:
            return None
        metrics = self._metrics
        metrics.reads += 1
        metrics.read_bytes += size_bytes
        metrics.zero_chunks += zeros
        metrics.l1_hit_chunks += _chunks(offset, size_bytes, table.chunk_bytes) - zeros
        return buffer

    async def read(
        self,
        table: ManifestTable,
        offset: int,
        size_bytes: int,
        inode: int = NO_INODE,
        *,
        holds: bool = False,
    ) -> bytes | memoryview:
        """Return the bytes of an image from `offset`: `size_bytes`, or fewer at its end.

        With `inode` the board is told where its chunks are. `holds`: an outage does not end the
        read, it is asked again. The result is valid until something else runs on this thread.

        Raises:
            DeadlineError: the chunks did not come in time.
            CachefsError: they can't be had; the message says why.
        """
        size_bytes = max(0, min(size_bytes, table.size_bytes - offset))
        self._metrics.reads += 1
        self._metrics.read_bytes += size_bytes
        begun_s = trio.current_time()
        if not self._metrics.waiting_reads:
            self._stalled_since_s = begun_s
        self._metrics.waiting_reads += 1
        try:
            if holds and self._metrics.waiting_reads > _MOST_WAITING:
                raise DeadlineError(f"{_MOST_WAITING} reads wait already")
            return await self._read_long(table, offset, size_bytes, inode)
        except CachefsError as error:
            if holds and error.transient:
                self._metrics.held_reads += 1
                raise
            self._metrics.read_errors += 1
            self._metrics.read_deadlines += isinstance(error, DeadlineError)
            raise
        finally:
            ended_s = trio.current_time()
            self._metrics.read_wait_us += int((ended_s - begun_s) * 1e6)
            self._metrics.waiting_reads -= 1
            if not self._metrics.waiting_reads:
                self._metrics.stalled_us += int((ended_s - self._stalled_since_s) * 1e6)

    async def read_chunks(self, refs: list[ChunkRef], chunk_bytes: int) -> bytes:
        """Return whole chunks, one after the other, from wherever they are.

        Raises:
            CachefsError: as `read`.
        """
        deadline_s = trio.current_time() + self._deadline_s
        pieces = [_Piece(index, 0, ref.plain_bytes) for index, ref in enumerate(refs)]
        missing = [ref for ref in refs if self._l1.find(ref.id) is None]
        self._metrics.miss_chunks += len(missing)
        with self._stack.flights(missing, chunk_bytes, deadline_s) as flights:
            await self._stack.wait(flights, deadline_s)
            landed = {flight.ref.id: flight for flight in flights}
            return await self._read_pieces(refs, pieces, landed, chunk_bytes, deadline_s)

    def _fill_by_hint(self, table: ManifestTable, offset: int, buffer: memoryview) -> bool:
        """Fill a buffer from the one chunk that it lies in, if that chunk's place is known."""
        index, start = divmod(offset, table.chunk_bytes)
        hint = self._hints.get((table.serial, index))
        if hint is None or start + len(buffer) > table.chunk_bytes:
            return False
        if self._hints_as_of != self._l1.drops:
            self._hints.clear()
            return False
        fd, position, slot = hint
        if os.preadv(fd, (buffer,), position + start, os.RWF_NOWAIT) != len(buffer):
            return False
        self._l1.touch(slot)
        return True

    def _keep_hint(self, table: ManifestTable, index: int, place: tuple[int, int, int]) -> None:
        if self._hints_as_of != self._l1.drops or len(self._hints) >= _MOST_HINTS:
            self._hints.clear()
            self._hints_as_of = self._l1.drops
        self._hints[table.serial, index] = place

    def _fill(
        self, table: ManifestTable, offset: int, buffer: memoryview, inode: int
    ) -> int | None:
        """Fill a buffer; None at the first chunk that is no hit, else how many are zero.

        Chunks that lie side by side in L1, as a sequential fetch leaves them, are one preadv.
        """
        chunk_bytes, locate, size_bytes = table.chunk_bytes, self._l1.locate_hit, len(buffer)
        board = self._l1.board if inode else None
        index, start = divmod(offset, chunk_bytes)
        at = run_at = zeros = 0
        run_fd = run_position = -1
        while at < size_bytes:
            want = min(chunk_bytes - start, size_bytes - at)
            found = table.id_at(index)
            if found:
                place = locate(found)
                if place is None:
                    return None
                fd, position = place[0], place[1] + start
                is_told = not board or board.publish(inode, index, found, place[2])
                if is_told and size_bytes <= chunk_bytes:  # by hint it is not told again
                    self._keep_hint(table, index, place)
            else:
                fd, position = -1, 0
                zeros += 1
                if board:
                    board.publish_zero(inode, index)
            if fd != run_fd or position != run_position + at - run_at:
                if not _fill_run(run_fd, run_position, buffer[run_at:at]):
                    return None
                run_fd, run_position, run_at = fd, position, at
            at += want
            index += 1
            start = 0
        return zeros if _fill_run(run_fd, run_position, buffer[run_at:at]) else None

    async def _read_long(
        self, table: ManifestTable, offset: int, size_bytes: int, inode: int
    ) -> bytes | memoryview:
        """Read with waits. All misses are fetched at once, and are hits when they have landed."""
        deadline_s = trio.current_time() + self._deadline_s
        pieces = _split(offset, size_bytes, table.chunk_bytes)
        refs = [table.chunk(piece.index) for piece in pieces]
        is_left = self._l1.is_left
        missing = [
            ref for ref in refs if not ref.is_zero and (is_left or self._l1.find(ref.id) is None)
        ]
        if not missing:  # here by now; most often all of it is in the page cache, too
            buffer = self._buffer(size_bytes)
            if not self._verify_reads and self._fill_landed(table, offset, buffer, inode):
                self._metrics.l1_hit_chunks += sum(not ref.is_zero for ref in refs)
                self._metrics.zero_chunks += sum(ref.is_zero for ref in refs)
                return buffer
            data = await self._read_pieces(refs, pieces, {}, table.chunk_bytes, deadline_s)
            self._publish(refs, pieces, inode)
            return data
        self._metrics.miss_chunks += len(missing)
        with self._stack.flights(missing, table.chunk_bytes, deadline_s) as flights:
            await self._stack.wait(flights, deadline_s)
            buffer = self._buffer(size_bytes)
            if not self._verify_reads and self._fill_landed(table, offset, buffer, inode):
                return buffer
            landed = {flight.ref.id: flight for flight in flights}
            data = await self._read_pieces(refs, pieces, landed, table.chunk_bytes, deadline_s)
            self._publish(refs, pieces, inode)
            return data

    def _fill_landed(
        self, table: ManifestTable, offset: int, buffer: memoryview, inode: int
    ) -> bool:
        try:
            return self._fill(table, offset, buffer, inode) is not None
        except OSError:  # the piecewise way says what it is
            return False

    def _publish(self, refs: list[ChunkRef], pieces: list[_Piece], inode: int) -> None:
        """Tell the board where chunks are that were just read; not of those still suspect."""
        for ref, piece in zip(refs, pieces, strict=True) if inode else ():
            placement = None if ref.is_zero else self._l1.find(ref.id)
            if placement is not None and not self._l1.is_suspect(placement):
                self._l1.board.publish(inode, piece.index, ref.id, placement.slot)

    async def _read_pieces(
        self,
        refs: list[ChunkRef],
        pieces: list[_Piece],
        landed: dict[bytes, Flight],
        chunk_bytes: int,
        deadline_s: float,
    ) -> bytes:
        """Read chunk by chunk: from its flight, else from L1, else by one more flight."""
        parts: list[bytes] = []
        with trio.move_on_at(deadline_s):
            for ref, piece in zip(refs, pieces, strict=True):
                flight = landed.get(ref.id)
                part = await (
                    self._from_flight(flight, piece) if flight else self._from_l1(ref, piece)
                )
                if part is None:  # gone meanwhile, or it turned out to be bad
                    self._metrics.miss_chunks += 1
                    part = await self._from_elsewhere(ref, piece, chunk_bytes, deadline_s)
                parts.append(part)
            return b"".join(parts)
        raise DeadlineError(f"L1 did not answer within {self._deadline_s:.0f} s")

    async def _from_elsewhere(
        self, ref: ChunkRef, piece: _Piece, chunk_bytes: int, deadline_s: float
    ) -> bytes:
        """Return a piece from the next tier: kept if L1 has lost it, past a disk that fails.

        A flight that it joins may be kept all the same: it asks until one gives it the bytes.
        """
        is_kept = self._l1.find(ref.id) is None
        while True:
            with self._stack.flights([ref], chunk_bytes, deadline_s, is_kept=is_kept) as again:
                await self._stack.wait(again, deadline_s)
                part = await self._from_flight(again[0], piece)
                if part is not None:
                    return part
            is_kept = False

    async def _from_l1(self, ref: ChunkRef, piece: _Piece) -> bytes | None:
        """Return a piece from L1, None if L1 does not hold its chunk, or cannot give it now."""
        if ref.is_zero:
            self._metrics.zero_chunks += 1
            return bytes(piece.size_bytes)
        placement = self._l1.find(ref.id)
        if placement is None or self._l1.is_left:
            return None
        must_verify = self._verify_reads or self._l1.is_suspect(placement)
        self._l1.pin(placement.slot)
        self._l1.touch(placement.slot)  # not later: the slot may have lost its chunk by then
        try:
            if must_verify:
                part = await self._verified(ref, placement, piece)
            else:
                part = await self._read_slot(placement.slot, piece.start, piece.size_bytes)
        except OSError as error:
            self._unreadable(error, ref, placement.slot)
            return None
        except CorruptError as error:
            logger.warning("%s; it is fetched again", error)
            self._metrics.l1_corrupt += 1
            self._l1.drop(ref.id, placement.slot)
            return None
        finally:
            self._l1.unpin(placement.slot)
        self._metrics.l1_hit_chunks += 1
        return part

    async def _verified(self, ref: ChunkRef, placement: Placement, piece: _Piece) -> bytes:
        plain = await self._read_slot(placement.slot, 0, placement.plain_bytes)
        if chunk_id(plain) != ref.id:
            raise CorruptError(f"chunk {ref.id.hex()[:16]} in L1 is corrupt")
        if self._l1.is_suspect(placement):
            self._l1.verified(ref.id, placement)
        return plain[piece.start : piece.start + piece.size_bytes]

    async def _from_flight(self, flight: Flight, piece: _Piece) -> bytes | None:
        """Return a piece from a flight that landed, None if L1 lost it since."""
        if flight.plain is not None:
            return flight.plain[piece.start : piece.start + piece.size_bytes]
        if flight.slot is None:
            raise CorruptError("a flight landed without a slot")  # never: see Flight
        try:
            if not self._verify_reads:
                return await self._read_slot(flight.slot, piece.start, piece.size_bytes)
            plain = await self._read_slot(flight.slot, 0, flight.ref.plain_bytes)
        except OSError as error:
            self._unreadable(error, flight.ref, flight.slot)
            return None
        if chunk_id(plain) != flight.ref.id:
            logger.warning("chunk %s in L1 is corrupt already", flight.ref.id.hex()[:16])
            self._metrics.l1_corrupt += 1
            self._l1.drop(flight.ref.id, flight.slot)
            return None
        return plain[piece.start : piece.start + piece.size_bytes]

    async def _read_slot(self, slot: int, start: int, size_bytes: int) -> bytes:
        """Return bytes of a pinned slot, by a thread if the disk has to be waited for."""
        fd, position = self._l1.place(slot)
        part = bytearray(size_bytes)
        try:
            if os.preadv(fd, [part], position + start, os.RWF_NOWAIT) == size_bytes:
                return bytes(part)
        except OSError:
            pass  # not in the page cache, or a file system that cannot say: the thread will
        self._metrics.disk_waits += 1
        read = partial(os.pread, fd, size_bytes, position + start)
        with trio.move_on_after(self._disk_patience_s) as patience:
            data = await trio.to_thread.run_sync(read, limiter=self._disk, abandon_on_cancel=True)
        if patience.cancelled_caught:
            raise OSError(errno.ETIMEDOUT, f"no answer in {self._disk_patience_s:g} s")
        if len(data) != size_bytes:
            raise OSError(errno.EIO, "the segment ends too early")
        self._l1.health.succeeded()
        return data

    def _unreadable(self, error: OSError, ref: ChunkRef, slot: int) -> None:
        """Take note of a slot that cannot be read; one that is only slow keeps its chunk."""
        logger.warning("L1 cannot read chunk %s: %s", ref.id.hex()[:16], error)
        self._metrics.l1_errors += 1
        self._l1.health.failed()
        if error.errno != errno.ETIMEDOUT:
            self._l1.drop(ref.id, slot)


def _split(offset: int, size_bytes: int, chunk_bytes: int) -> list[_Piece]:
    """Return the pieces of chunks that a read covers, in order."""
    pieces: list[_Piece] = []
    end = offset + size_bytes
    while offset < end:
        index, start = divmod(offset, chunk_bytes)
        want = min(chunk_bytes - start, end - offset)
        pieces.append(_Piece(index, start, want))
        offset += want
    return pieces


def _chunks(offset: int, size_bytes: int, chunk_bytes: int) -> int:
    """Return how many chunks a read touches."""
    return (offset + size_bytes - 1) // chunk_bytes - offset // chunk_bytes + 1 if size_bytes else 0


def _fill_run(fd: int, position: int, part: memoryview) -> bool:
    """Fill a part of a buffer from a file, or with zeros if there is no file (-1)."""
    if not part:
        return True
    if fd < 0:
        part[:] = bytes(len(part))
        return True
    # A short read or EAGAIN: not all of it is in the page cache.
    return os.preadv(fd, [part], position, os.RWF_NOWAIT) == len(part)


def _one_buffer() -> Callable[[int], memoryview]:
    whole = memoryview(bytearray(MAX_READ_BYTES))
    return lambda size_bytes: whole[:size_bytes]
