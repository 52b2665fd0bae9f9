"""Reads over their own socket: the daemon answers them itself, says so to the lane, and may die."""

import errno
import os
import signal
import time
from pathlib import Path

import pytest

from tests.mount_helper.conftest import TinyMount, wait_for
from tests.mount_helper.test_survival import has_restarted, read_direct, start_reader, under_load
from tests.mount_helper.tiny_daemon import expected

pytestmark = pytest.mark.mount

DATA = 2
"""The inode of `data` in the tiny daemon."""


@pytest.mark.parametrize("mode", ["reads", "reads-hits", "serve"])
@pytest.mark.parametrize("size", [4096, 131072, 1 << 20])
def test_reads_come_through(tiny_mount: TinyMount, mode: str, size: int) -> None:
    tiny_mount.started(mode)
    for offset in range(0, 8 << 20, 1 << 20):
        assert read_direct(tiny_mount.data, offset, size) == expected(DATA, offset, size)
    assert tiny_mount.lane("replies_malformed") == 0
    if mode == "serve":
        assert tiny_mount.lane("replies_direct") == 0
    else:  # the lane is told a little later
        wait_for(lambda: tiny_mount.lane("replies_direct") > 0, "the word about the answers")


@pytest.mark.parametrize("mode", ["reads", "reads-hits"])
def test_a_short_file_and_a_read_beyond_its_end(tiny_mount: TinyMount, mode: str) -> None:
    tiny_mount.started(mode)
    small = Path(tiny_mount.mountpoint) / "small"
    assert small.read_bytes() == expected(3, 0, 100)
    with small.open("rb") as file:
        assert os.pread(file.fileno(), 10, 95) == expected(3, 95, 5)
        assert os.pread(file.fileno(), 10, 200) == b""
    assert read_direct(small, 1 << 50, 4096) == b""


def test_no_byte_is_mixed_up_under_load_and_kills(tiny_mount: TinyMount) -> None:
    tiny_mount.started("reads")

    def kill() -> None:
        for count in range(1, 6):
            replies = tiny_mount.lane("replies_direct")
            wait_for(lambda: tiny_mount.lane("replies_direct") > replies, "replies")  # noqa: B023
            tiny_mount.signal_daemon(signal.SIGKILL)
            wait_for(lambda: has_restarted(tiny_mount, count), "the next daemon")  # noqa: B023

    under_load(tiny_mount, 5, kill)
    assert tiny_mount.lane("replies_malformed") == 0


def test_a_daemon_dies_after_its_answer_and_before_its_word_about_it(tiny_mount: TinyMount) -> None:
    """The next daemon answers once more, and the kernel refuses that."""
    tiny_mount.started("reads-dies-between", value=3)
    for number in range(6):
        offset = number * 4096
        assert read_direct(tiny_mount.data, offset, 4096) == expected(DATA, offset, 4096)
        time.sleep(0.02)  # what was answered is told a little later
    wait_for(lambda: tiny_mount.lane("kept") == 0, "nothing kept")
    assert tiny_mount.part("daemon")["restarts"] in {1, 2}
    assert tiny_mount.lane("resent") >= 1


def test_a_read_that_fails_has_its_own_error(tiny_mount: TinyMount) -> None:
    tiny_mount.started("reads-fail")
    with pytest.raises(OSError, match=os.strerror(errno.EBADMSG)):
        read_direct(tiny_mount.data, 0, 4096)
    wait_for(lambda: tiny_mount.lane("kept") == 0, "nothing kept")


def test_what_no_read_was_answered_by_is_passed_over(tiny_mount: TinyMount) -> None:
    tiny_mount.started("reads-strange")
    wait_for(lambda: tiny_mount.lane("replies_unknown") == 1000, "the uniques of no read")
    assert read_direct(tiny_mount.data, 0, 4096) == expected(DATA, 0, 4096)
    assert tiny_mount.part("daemon")["restarts"] == 0


def test_a_daemon_that_speaks_another_language_is_replaced(tiny_mount: TinyMount) -> None:
    tiny_mount.started("reads-babbles")
    assert read_direct(tiny_mount.data, 0, 4096) == expected(DATA, 0, 4096)
    wait_for(lambda: has_restarted(tiny_mount, 1), "the next daemon")
    assert tiny_mount.lane("replies_malformed") == 1


@pytest.mark.slow
def test_late_answers_to_readers_that_were_killed_are_dropped(tiny_mount: TinyMount) -> None:
    tiny_mount.started("reads-late", value=5)
    readers = [start_reader(tiny_mount, direct=True) for _ in range(8)]
    wait_for(lambda: tiny_mount.lane("kept") == len(readers), "the reads")
    for reader in readers:
        reader.kill()
    for reader in readers:
        with reader:
            reader.wait(5)
    wait_for(lambda: tiny_mount.lane("replies_unknown") >= len(readers), "late replies")
    assert read_direct(tiny_mount.data, 0, 1 << 20) == expected(DATA, 0, 1 << 20)
