"""The reads that the lane passes on: taken from their socket, and answered to the kernel.

They come past libfuse and pyfuse3, as many as there are at once: for 4 KiB from memory, those take
longer than all the rest. The lane is told which reads have been answered; what it is not told of,
it asks again, here or the next daemon.

Concurrency: event loop only. A hit is answered where it is taken; each other read is a task.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Awaitable, Callable
from time import perf_counter

import pyfuse3
import trio

from cachefs.fuse.replies import Replies
from mount_helper import _lane

_READ = struct.Struct(_lane.PASSED_READ_FORMAT)
"""unique, inode, offset, size in bytes, device."""

_GIVEN_BACK = 1
"""Set in the unique of a read (they are even) that the lane is to keep and to pass on again."""

_MOST_AT_ONCE = 16
"""Reads taken together: of 1 MiB each, about 3 ms."""

_MOST_TASKS = 4096
"""Reads that wait at the same time. Those behind them wait in the lane, hits too."""

_SOON_S = 0.00015
"""A read that comes so soon after an answer is of a reader that asks for one after the other."""

_POLL_S = 0.00005
"""The next of such a reader is polled for: to sleep and be woken takes more of the processor than
so long a poll, and a turn of the event loop more still. Not while a read waits for anything."""

_TURN_S = 0.002
"""How long other tasks wait for their turn at most, beside 16 reads."""

_TELL_AFTER_S = 0.002
_TELL_AT = 64
"""The lane is told of answers when there are so many, or so old."""

_MOST_TOLD = 256
"""Uniques in one message: the kernel keeps so short a one in one piece."""

ReadHit = Callable[[int, int, int], memoryview | None]
"""Inode, offset, size: the bytes if they are here now, valid until the next call."""
ReadLong = Callable[[int, int, int], Awaitable[bytes | memoryview]]
"""The same with waits; raises FUSEError."""


class Reads:
    """Answers the reads that come over a socket, with what two functions return."""

    def __init__(self, replies: Replies, read_hit: ReadHit, read: ReadLong) -> None:
        self._replies = replies
        self._read_hit = read_hit
        self._read = read
        self._answered: list[bytes] = []
        """Uniques that the lane has not been told of."""
        self._has_answered = trio.Event()
        self._done_s = 0.0
        """When the last read was answered, or its task started."""
        self._room = trio.Semaphore(_MOST_TASKS)

    async def run(self, reads: socket.socket) -> None:
        """Answer until cancelled, or until the lane is gone; close the socket."""
        reads.setblocking(False)
        with reads:
            async with trio.open_nursery() as telling:
                telling.start_soon(self._tell_in_time, reads)
                async with trio.open_nursery() as nursery:
                    await self._take_all(reads, nursery)
                self._tell_lane(reads)
                telling.cancel_scope.cancel()

    async def _take_all(self, reads: socket.socket, nursery: trio.Nursery) -> None:
        while True:
            await trio.lowlevel.wait_readable(reads)
            end_s = perf_counter() + _TURN_S
            patience_s = 0.0
            try:
                while await self._take_some(reads, patience_s, nursery) and perf_counter() < end_s:
                    patience_s = _POLL_S
            except BlockingIOError:
                continue
            except ConnectionResetError:
                return

    async def _take_some(
        self, reads: socket.socket, patience_s: float, nursery: trio.Nursery
    ) -> bool:
        """Take what is there, or comes within patience; true if the next is to be polled for."""
        data = _receive(reads, patience_s)
        if not data:
            raise ConnectionResetError
        is_soon = perf_counter() < self._done_s + _SOON_S
        for read in _READ.iter_unpack(data):
            if not self._answer_hit(*read):
                await self._start_task(nursery, reads, read)
        if len(self._answered) >= _TELL_AT:
            self._tell_lane(reads)
        self._done_s = perf_counter()
        return is_soon and self._room.value == _MOST_TASKS

    def _answer_hit(
        self, unique: int, inode: int, offset: int, size_bytes: int, device: int
    ) -> bool:
        hit = self._read_hit(inode, offset, size_bytes)
        if hit is None:
            return False
        self._replies.answer(hit, unique, device)
        self._note_answered(unique)
        return True

    async def _start_task(
        self, nursery: trio.Nursery, reads: socket.socket, read: tuple[int, int, int, int, int]
    ) -> None:
        try:
            self._room.acquire_nowait()
        except trio.WouldBlock:
            await self._room.acquire()
        nursery.start_soon(self._answer_later, reads, *read)

    async def _answer_later(
        self,
        reads: socket.socket,
        unique: int,
        inode: int,
        offset: int,
        size_bytes: int,
        device: int,
    ) -> None:
        try:
            data = await self._read(inode, offset, size_bytes)
            self._replies.answer(data, unique, device)
        except pyfuse3.FUSEError as error:
            if error.errno == _lane.HOLD_ERROR:
                unique |= _GIVEN_BACK
            else:
                self._replies.answer_error(error.errno, unique, device)
        finally:
            self._room.release()
        self._note_answered(unique)
        if len(self._answered) >= _TELL_AT:
            self._tell_lane(reads)

    def _note_answered(self, unique: int) -> None:
        if not self._answered:
            self._has_answered.set()
        self._answered.append(unique.to_bytes(8, "little"))

    async def _tell_in_time(self, reads: socket.socket) -> None:
        while True:
            await self._has_answered.wait()
            self._has_answered = trio.Event()
            await trio.sleep(_TELL_AFTER_S)
            self._tell_lane(reads)
            while self._answered:
                await trio.lowlevel.wait_writable(reads)
                self._tell_lane(reads)

    def _tell_lane(self, reads: socket.socket) -> None:
        """Say what has been answered; what has no room in the socket is said later."""
        try:
            while self._answered:
                reads.send(b"".join(self._answered[:_MOST_TOLD]))
                del self._answered[:_MOST_TOLD]
        except BlockingIOError:
            return
        except OSError:
            self._answered.clear()  # the lane is gone: nobody is left to be told


def _receive(reads: socket.socket, patience_s: float) -> bytes:
    """Some whole reads; nothing if the lane is gone. Raises BlockingIOError if none has come."""
    end_s = perf_counter() + patience_s
    while True:
        try:
            return reads.recv(_MOST_AT_ONCE * _READ.size)
        except BlockingIOError:
            if perf_counter() >= end_s:
                raise
