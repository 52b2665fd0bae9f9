"""Reads over their own socket, as a lane and a kernel see them."""

import errno
import itertools
import os
import socket
import struct
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pyfuse3
import pytest
import trio
import trio.testing

from cachefs.fuse import reads as reads_module
from cachefs.fuse.reads import Reads
from cachefs.fuse.replies import Replies
from mount_helper import _lane

HEADER = struct.Struct("=IiQ")
HIT, MISS, BAD, HELD = 1, 2, 3, 4


def passed(unique: int, inode: int = HIT, offset: int = 0, size: int = 100) -> bytes:
    return struct.pack(_lane.PASSED_READ_FORMAT, unique, inode, offset, size, 0)


def content(inode: int, offset: int, size: int) -> bytes:
    return bytes((inode + offset + at) % 251 for at in range(size))


class Lane:
    """The lane's end of the socket, the kernel's end of the device, and what is read."""

    def __init__(self) -> None:
        self.device = os.memfd_create("device")
        self.socket, self.theirs = socket.socketpair()
        self.socket.setblocking(False)
        self.release = trio.Event()
        self.replies = Replies()
        self.replies.devices = [self.device]
        self.reads = Reads(self.replies, self._hit, self._long)

    def _hit(self, inode: int, offset: int, size: int) -> memoryview | None:
        if inode != HIT:
            return None
        buffer = self.replies.buffer(size)
        buffer[:] = content(inode, offset, size)
        return buffer

    async def _long(self, inode: int, offset: int, size: int) -> bytes:
        await self.release.wait()
        if inode in {BAD, HELD}:
            raise pyfuse3.FUSEError(errno.EIO if inode == BAD else _lane.HOLD_ERROR)
        return content(inode, offset, size)

    def answers(self) -> dict[int, bytes | int]:
        """What the kernel has been told, by unique: bytes or an errno."""
        data = os.pread(self.device, 1 << 24, 0)
        found: dict[int, bytes | int] = {}
        while data:
            length, error, unique = HEADER.unpack_from(data)
            assert unique not in found
            found[unique] = data[HEADER.size : length] if not error else -error
            data = data[length:]
        return found

    def told(self) -> list[int]:
        """The uniques of which the lane has been told, since the last call."""
        try:
            data = self.socket.recv(1 << 20)
        except BlockingIOError:
            return []
        return [unique for (unique,) in struct.iter_unpack("<Q", data)]

    def close(self) -> None:
        os.close(self.device)
        self.socket.close()


@pytest.fixture
def lane() -> Iterator[Lane]:
    lane = Lane()
    yield lane
    lane.close()


@asynccontextmanager
async def running(lane: Lane) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lane.reads.run, lane.theirs)
        yield
        nursery.cancel_scope.cancel()


async def settle() -> None:
    await trio.testing.wait_all_tasks_blocked(0.01)


async def test_hits_are_answered_in_one_turn_and_told_together(lane: Lane) -> None:
    lane.socket.send(b"".join(passed(unique, offset=unique) for unique in range(2, 12, 2)))
    async with running(lane):
        await settle()
        assert lane.answers() == {n: content(HIT, n, 100) for n in range(2, 12, 2)}
        assert lane.told() == [2, 4, 6, 8, 10]


async def test_a_read_that_waits_does_not_hold_back_hits(lane: Lane) -> None:
    async with running(lane):
        lane.socket.send(passed(2, MISS) + passed(4, HIT) + passed(6, BAD) + passed(8, HIT))
        await settle()
        assert sorted(lane.answers()) == [4, 8]
        assert lane.told() == [4, 8]
        lane.release.set()
        await settle()
        assert lane.answers()[2] == content(MISS, 0, 100)
        assert lane.answers()[6] == errno.EIO
        assert sorted(lane.told()) == [2, 6]


async def test_a_read_that_is_given_back_is_no_answer_to_the_kernel(lane: Lane) -> None:
    lane.release.set()
    async with running(lane):
        lane.socket.send(passed(2, HELD) + passed(4, HIT))
        await settle()
        assert sorted(lane.answers()) == [4]
        assert sorted(lane.told()) == [3, 4]


async def test_more_reads_than_may_wait_are_left_in_the_lane(
    lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reads_module, "_MOST_TASKS", 3)
    lane.reads = Reads(lane.replies, lane._hit, lane._long)
    async with running(lane):
        lane.socket.send(passed(2, HIT) + b"".join(passed(n, MISS) for n in range(4, 14, 2)))
        await settle()
        assert lane.told() == [2]
        lane.release.set()
        await settle()
        assert sorted(lane.answers()) == list(range(2, 14, 2))
        assert sorted(lane.told()) == list(range(4, 14, 2))


async def test_what_has_no_room_in_the_socket_is_told_later(lane: Lane) -> None:
    async with running(lane):
        lane.theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        uniques = list(range(2, 400, 2))
        told: list[int] = []
        for unique in uniques:
            lane.socket.send(passed(unique, size=8))
            await settle()
        assert sorted(lane.answers()) == uniques
        told += lane.told()
        assert told != uniques  # the socket was full
        await settle()
        while more := lane.told():
            told += more
            await settle()
        assert told == uniques


async def test_hits_one_after_the_other_leave_other_tasks_their_turns(
    lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reads_module, "_SOON_S", 0.5)
    monkeypatch.setattr(reads_module, "_POLL_S", 0.5)  # on this thread: it polls for each next
    answers = 0

    def hit(inode: int, offset: int, size: int) -> memoryview | None:
        nonlocal answers
        answers += 1
        time.sleep(0.0001)
        lane.socket.send(passed(2 + 2 * answers))
        return content_hit(inode, offset, size)

    content_hit = lane._hit
    lane.reads = Reads(lane.replies, hit, lane._long)
    lane.socket.send(passed(2))
    async with running(lane):
        turns = [0]
        with trio.fail_after(60):
            while len(turns) < 4:
                await trio.lowlevel.checkpoint()
                if answers > turns[-1]:
                    turns.append(answers)
    assert max(later - sooner for sooner, later in itertools.pairwise(turns)) < 100


async def test_a_read_that_waits_gets_its_turn_beside_hits_one_after_the_other(
    lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reads_module, "_SOON_S", 0.5)
    monkeypatch.setattr(reads_module, "_TURN_S", 5)
    hits = 0
    hits_before: list[int] = []

    def hit(inode: int, offset: int, size: int) -> memoryview | None:
        nonlocal hits
        if inode != HIT:
            return None
        hits += 1
        if hits == 50:
            lane.socket.send(passed(1_000_000, MISS))
        lane.socket.send(passed(2 + 2 * hits))
        return content_hit(inode, offset, size)

    async def long(inode: int, offset: int, size: int) -> bytes:
        hits_before.append(hits)
        return await content_long(inode, offset, size)

    content_hit, content_long = lane._hit, lane._long
    lane.reads = Reads(lane.replies, hit, long)
    lane.release.set()
    lane.socket.send(passed(2))
    async with running(lane):
        with trio.fail_after(60):
            while not hits_before:
                await trio.lowlevel.checkpoint()
    assert 50 <= hits_before[0] <= 50 + reads_module._MOST_AT_ONCE


async def test_it_ends_when_the_lane_is_gone(lane: Lane) -> None:
    lane.socket.send(passed(2))
    lane.socket.close()
    with trio.fail_after(60):
        await lane.reads.run(lane.theirs)
    assert lane.answers() == {2: content(HIT, 0, 100)}


@pytest.mark.parametrize("inode", [MISS, BAD])
async def test_a_lane_that_goes_while_a_read_waits(lane: Lane, inode: int) -> None:
    lane.socket.send(passed(2, inode))
    async with running(lane):
        await settle()
        lane.socket.close()
        lane.release.set()
        await settle()
        assert list(lane.answers()) == [2]
