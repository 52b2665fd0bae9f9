import errno
import os
import struct
from collections.abc import Iterator
from random import Random

import pytest

from cachefs.fuse.replies import Replies
from cachefs.units import MIB

ERROR = struct.Struct("=IiQ")


@pytest.fixture
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A file that takes any answer, as /dev/fuse does."""
    fd = os.open(tmp_path_factory.mktemp("device") / "file", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    yield fd
    os.close(fd)


def written(device: int) -> bytes:
    data = os.pread(device, 2 * MIB, 0)
    os.ftruncate(device, 0)
    return data


@pytest.mark.parametrize("size_bytes", [0, 1, 4096, 16000, MIB])
def test_the_kernel_gets_a_header_and_the_bytes(device: int, size_bytes: int) -> None:
    replies = Replies()
    replies.devices = [-1, device]
    data = Random(size_bytes).randbytes(size_bytes)
    header = ERROR.pack(16 + size_bytes, 0, 1234)
    replies.answer(data, 1234, 1)  # bytes of the long way
    assert written(device) == header + data
    buffer = replies.buffer(size_bytes)
    assert len(buffer) == size_bytes
    buffer[:] = data
    replies.answer(buffer, 1234, 1)
    assert written(device) == header + data


def test_an_error_is_its_number_and_nothing_else(device: int) -> None:
    replies = Replies()
    replies.devices = [device]
    replies.buffer(100)[:] = bytes(100)
    replies.answer_error(errno.EIO, 77, 0)
    assert written(device) == ERROR.pack(16, -errno.EIO, 77)


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENODEV, errno.EINVAL])
def test_an_answer_that_is_refused_is_an_error_if_somebody_still_waits(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[bytes] = []

    def refuse(fd: int, data: memoryview) -> int:
        told.append(bytes(data))
        raise OSError(number, "refused")

    replies = Replies()
    replies.devices = [0]
    monkeypatch.setattr("os.write", refuse)
    replies.answer(b"abc", 1234, 0)
    first = ERROR.pack(19, 0, 1234) + b"abc"
    second = ERROR.pack(16, -errno.EIO, 1234)
    assert told == ([first, second] if number == errno.EINVAL else [first])
