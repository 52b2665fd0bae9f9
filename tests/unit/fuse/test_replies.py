import os
from collections.abc import Iterator
from random import Random

import pytest

from cachefs.fuse.replies import LEAST_ARENA_BYTES, Replies
from cachefs.units import MIB
from mount_helper import arena as layout
from mount_helper.arena import Arena


@pytest.fixture
def arena() -> Iterator[Arena]:
    fd = layout.create()
    yield Arena(fd)
    os.close(fd)


def received(arena: Arena, reply: bytes | memoryview) -> bytes:
    """Return what the lane would send to the kernel, and set the buffer free as it does."""
    cookie, number, size_bytes = layout.REFERENCE.unpack_from(reply)
    assert cookie == arena.cookie
    if number == layout.INLINE:
        assert len(reply) == layout.REFERENCE.size + size_bytes
        return bytes(reply[layout.REFERENCE.size :])
    assert len(reply) == layout.REFERENCE.size
    assert arena._memory[layout.STATES_AT + number] == 1
    arena._memory[layout.STATES_AT + number] = 0
    return bytes(arena.buffers[number][:size_bytes])


@pytest.mark.parametrize("size_bytes", [0, 1, 4096, LEAST_ARENA_BYTES - 1, LEAST_ARENA_BYTES, MIB])
def test_what_was_filled_arrives(arena: Arena, size_bytes: int) -> None:
    replies = Replies(arena)
    data = Random(size_bytes).randbytes(size_bytes)
    for _ in range(layout.BUFFERS + 2):
        buffer = replies.buffer(size_bytes)
        assert len(buffer) == size_bytes
        buffer[:] = data
        assert received(arena, replies.reply(buffer)) == data
        assert received(arena, replies.reply(data)) == data  # bytes of the long way


def test_small_replies_take_no_buffer(arena: Arena) -> None:
    replies = Replies(arena)
    replies.reply(replies.buffer(4096))
    assert arena.free_buffer() == 0


def test_when_all_buffers_are_taken_replies_are_inline(arena: Arena) -> None:
    replies = Replies(arena)
    data = [Random(number).randbytes(MIB) for number in range(layout.BUFFERS + 1)]
    sent = []
    for each in data:
        replies.buffer(MIB)[:] = each
        sent.append(bytes(replies.reply(each)))
    assert arena.free_buffer() == -1
    assert [received(arena, reply) for reply in sent] == data


def test_a_buffer_that_was_not_sent_is_used_again(arena: Arena) -> None:
    replies = Replies(arena)
    for _ in range(layout.BUFFERS * 2):
        replies.buffer(MIB)  # a read that turned out to be no hit
    assert arena.free_buffer() == 0


def test_a_small_reply_after_a_large_buffer_takes_none(arena: Arena) -> None:
    replies = Replies(arena)
    replies.buffer(MIB)
    assert received(arena, replies.reply(b"short")) == b"short"
    assert arena.free_buffer() == 0
