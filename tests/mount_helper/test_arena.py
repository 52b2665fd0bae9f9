"""The arena: what a daemon puts there reaches the reader, and nothing that it should not."""

import os
import signal
from pathlib import Path

import pytest

from mount_helper import _lane, arena
from tests.mount_helper.conftest import TinyMount, wait_for
from tests.mount_helper.test_survival import (
    has_restarted,
    read_direct,
    start_reader,
    under_load,
)
from tests.mount_helper.tiny_daemon import expected

DATA = 2
"""The inode of `data` in the tiny daemon."""


def test_c_and_python_agree_about_the_layout() -> None:
    assert _lane.ARENA_LAYOUT == arena.LAYOUT


def test_an_arena_cannot_be_cut() -> None:
    fd = arena.create()
    try:
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 4096)
    finally:
        os.close(fd)


def test_buffers_are_taken_lowest_first_until_none_is_free() -> None:
    fd = arena.create()
    try:
        daemon = arena.Arena(fd)
        for number in range(arena.BUFFERS):
            assert daemon.free_buffer() == number
            daemon.take(number)
        assert daemon.free_buffer() == -1
        os.pwrite(fd, b"\0", arena.STATES_AT + 3)
        assert daemon.free_buffer() == 3
    finally:
        os.close(fd)


def test_another_memory_is_no_arena() -> None:
    fd = arena.create()
    try:
        os.pwrite(fd, b"OTHERSFR", 0)
        with pytest.raises(ValueError, match="no arena"):
            arena.Arena(fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize("mode", ["arena", "arena-inline"])
@pytest.mark.parametrize("size", [4096, 131072, 1 << 20])
def test_reads_come_through(tiny_mount: TinyMount, mode: str, size: int) -> None:
    tiny_mount.started(mode)
    for offset in range(0, 8 << 20, 1 << 20):
        assert read_direct(tiny_mount.data, offset, size) == expected(DATA, offset, size)
    assert tiny_mount.lane("replies_malformed") == 0


def test_a_short_file_and_a_read_beyond_its_end(tiny_mount: TinyMount) -> None:
    tiny_mount.started("arena")
    small = Path(tiny_mount.mountpoint) / "small"
    assert small.read_bytes() == expected(3, 0, 100)
    with small.open("rb") as file:
        assert os.pread(file.fileno(), 10, 95) == expected(3, 95, 5)
        assert os.pread(file.fileno(), 10, 200) == b""


def test_no_byte_is_mixed_up_under_load_and_kills(tiny_mount: TinyMount) -> None:
    tiny_mount.started("arena")

    def kill() -> None:
        for count in range(1, 6):
            replies = tiny_mount.lane("replies")
            wait_for(lambda: tiny_mount.lane("replies") > replies, "replies")  # noqa: B023
            tiny_mount.signal_daemon(signal.SIGKILL)
            wait_for(lambda: has_restarted(tiny_mount, count), "the next daemon")  # noqa: B023

    under_load(tiny_mount, 5, kill)
    assert tiny_mount.lane("replies_malformed") == 0


def test_a_reference_that_cannot_be_is_an_error_and_never_bytes(tiny_mount: TinyMount) -> None:
    tiny_mount.started("arena-lies")
    for number in range(7):
        with pytest.raises(OSError, match="Input/output error"):
            read_direct(tiny_mount.data, number * 4096, 4096)
    assert tiny_mount.lane("replies_malformed") == 7


@pytest.mark.slow
def test_the_reply_to_a_reader_that_was_killed_frees_its_buffer(tiny_mount: TinyMount) -> None:
    """The daemon has no way but the arena: buffers that are lost each time would end it."""
    tiny_mount.started("arena-late", value=5)
    count = arena.BUFFERS // 2 + 1
    for round_number in (1, 2):
        readers = [start_reader(tiny_mount, direct=True) for _ in range(count)]
        wait_for(lambda: tiny_mount.lane("kept") == count, "the reads")
        for reader in readers:
            reader.kill()
        for reader in readers:
            with reader:
                reader.wait(5)
        late = round_number * count
        wait_for(lambda: tiny_mount.lane("replies_unknown") >= late, "late replies")  # noqa: B023
    assert read_direct(tiny_mount.data, 0, 1 << 20) == expected(DATA, 0, 1 << 20)
