import errno
import os
import struct
from collections.abc import Iterator
from random import Random

import pytest

from cachefs.fuse.replies import ANSWERED, Replies, take_apart
from cachefs.units import MIB


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read_fd, write_fd = os.pipe2(os.O_NONBLOCK)
    os.set_blocking(write_fd, True)
    yield read_fd, write_fd
    os.close(read_fd)
    os.close(write_fd)


@pytest.mark.parametrize("size_bytes", [0, 1, 4096, 16000, MIB])
def test_without_devices_the_bytes_follow(size_bytes: int) -> None:
    replies = Replies()
    data = Random(size_bytes).randbytes(size_bytes)
    buffer = replies.buffer(size_bytes)
    assert len(buffer) == size_bytes
    buffer[:] = data
    assert bytes(replies.reply(buffer, 1234, 0)) == bytes(8) + data
    assert bytes(replies.reply(data, 1234, 0)) == bytes(8) + data  # bytes of the long way


@pytest.mark.parametrize("size_bytes", [0, 1, 4096, 16000])
def test_with_devices_the_kernel_gets_the_answer(pipe: tuple[int, int], size_bytes: int) -> None:
    replies = Replies()
    replies.take_devices([-1, pipe[1]])
    data = Random(size_bytes).randbytes(size_bytes)
    header = struct.pack("=IiQ", 16 + size_bytes, 0, 1234)
    assert bytes(replies.reply(data, 1234, 1)) == ANSWERED
    assert os.read(pipe[0], 65536) == header + data
    buffer = replies.buffer(size_bytes)
    buffer[:] = data
    assert bytes(replies.reply(buffer, 1234, 1)) == ANSWERED
    assert os.read(pipe[0], 65536) == header + data


def test_a_read_that_is_not_named_goes_through_the_lane(pipe: tuple[int, int]) -> None:
    replies = Replies()
    replies.take_devices([pipe[1]])
    assert bytes(replies.reply(b"abc")) == bytes(8) + b"abc"
    with pytest.raises(BlockingIOError):
        os.read(pipe[0], 1)


def test_an_answer_that_the_kernel_refuses_goes_through_the_lane() -> None:
    replies = Replies()
    fd = os.open("/dev/null", os.O_RDONLY)
    replies.take_devices([fd])
    assert bytes(replies.reply(b"abc", 1234, 0)) == bytes(8) + b"abc"
    os.close(fd)


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENODEV])
def test_an_answer_that_nobody_waits_for_is_done(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int, data: memoryview) -> int:
        raise OSError(number, "gone")

    replies = Replies()
    replies.take_devices([0])
    monkeypatch.setattr("os.write", refuse)
    assert bytes(replies.reply(b"abc", 1234, 0)) == ANSWERED


def test_taking_apart_the_lanes_form_of_read() -> None:
    number, generation, device, size, offset, unique = (
        8191,
        0x55,
        15,
        MIB,
        (1 << 48) - 4096,
        1 << 60,
    )
    read = take_apart(unique, offset | (number + 1) << 48, size | device << 21 | generation << 25)
    assert read == (number << 7 | generation, offset, size, unique, device)
