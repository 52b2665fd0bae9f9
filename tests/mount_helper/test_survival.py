"""The daemon dies or hangs, and readers see at most a delay."""

import mmap
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.mount_helper.conftest import DEADLINE_S, TinyMount, exists, wait_for
from tests.mount_helper.tiny_daemon import FILES, expected

pytestmark = pytest.mark.mount
SIZE = FILES[2][1]


def read_direct(path: Path, offset: int, size: int) -> bytes:
    """Read past the page cache."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, size) as buffer:
            count = os.preadv(fd, [buffer], offset)
            return buffer[:count]
    finally:
        os.close(fd)


class Comparer(threading.Thread):
    """Reads at random, compares every byte, and keeps what went wrong."""

    def __init__(self, path: Path, seed: int, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.path = path
        self.random = random.Random(seed)
        self.stop = stop
        self.reads = 0
        self.longest_s = 0.0
        self.failures: list[str] = []

    def run(self) -> None:
        while not self.stop.is_set():
            size = self.random.choice([4096, 131072, 1 << 20])
            offset = self.random.randrange(SIZE // 4096) * 4096
            begin = time.monotonic()
            try:
                data = read_direct(self.path, offset, size)
            except OSError as error:
                self.failures.append(f"{size} at {offset}: {error}")
                continue
            self.longest_s = max(self.longest_s, time.monotonic() - begin)
            self.reads += 1
            if data != expected(2, offset, size):
                self.failures.append(f"{size} at {offset}: wrong bytes ({len(data)})")


def under_load(mount: TinyMount, count: int, action: Callable[[], None]) -> list[Comparer]:
    """Do something while comparers read; return them when they have ended."""
    stop = threading.Event()
    comparers = [Comparer(mount.data, seed, stop) for seed in range(count)]
    for comparer in comparers:
        comparer.start()
    try:
        action()
    finally:
        stop.set()
        for comparer in comparers:
            comparer.join(DEADLINE_S)
    assert not any(comparer.is_alive() for comparer in comparers), "a read hangs"
    assert [failure for comparer in comparers for failure in comparer.failures] == []
    return comparers


def has_replied(mount: TinyMount, count: int) -> bool:
    return mount.lane("replies") > count


def has_restarted(mount: TinyMount, count: int) -> bool:
    return mount.part("daemon")["restarts"] == count


@pytest.mark.parametrize("size", [4096, 131072, 1 << 20])
def test_direct_reads(tiny_mount: TinyMount, size: int) -> None:
    tiny_mount.started()
    for offset in range(0, SIZE, 1 << 20):
        assert read_direct(tiny_mount.data, offset, size) == expected(2, offset, size)
    assert read_direct(tiny_mount.data, SIZE - 4096, size) == expected(2, SIZE - 4096, 4096)
    assert tiny_mount.lane("replies_oversize") == 0


def test_smaller_reads(tiny_mount: TinyMount) -> None:
    tiny_mount.started("serve", "--option", "max_read=65536")
    assert read_direct(tiny_mount.data, 0, 1 << 20) == expected(2, 0, 1 << 20)
    reads = tiny_mount.part("lane")["requests_by_opcode"]
    assert isinstance(reads, dict)
    assert reads["15"] == 16


def test_mmap(tiny_mount: TinyMount) -> None:
    tiny_mount.started()
    with (
        tiny_mount.data.open("rb") as file,
        mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ, flags=mmap.MAP_SHARED) as mapped,
    ):
        assert mapped[:] == expected(2, 0, SIZE)


@pytest.mark.slow
def test_twenty_kills_under_load(tiny_mount: TinyMount) -> None:
    tiny_mount.started()

    def kill_twenty_times() -> None:
        for number in range(20):
            more = tiny_mount.lane("replies") + 50
            wait_for(partial(has_replied, tiny_mount, more), "reads")
            tiny_mount.signal_daemon(signal.SIGKILL)
            wait_for(partial(has_restarted, tiny_mount, number + 1), "a restart")

    comparers = under_load(tiny_mount, 16, kill_twenty_times)
    assert all(comparer.reads for comparer in comparers)
    assert tiny_mount.lane("resent") > 0
    assert tiny_mount.starts() == ["fresh", *["restart"] * 20]
    assert tiny_mount.part("daemon")["restarts"] == 20
    wait_for(lambda: tiny_mount.lane("kept") == 0, "an empty table")


def test_daemon_that_kills_itself_in_a_read(tiny_mount: TinyMount) -> None:
    tiny_mount.started("dies-after", value=20)
    for offset in range(0, SIZE, 131072):
        assert read_direct(tiny_mount.data, offset, 131072) == expected(2, offset, 131072)
    last_exit = tiny_mount.part("daemon")["last_exit"]
    assert isinstance(last_exit, dict)
    assert last_exit["signal"] == signal.SIGKILL


def test_restart_command_under_load(tiny_mount: TinyMount) -> None:
    tiny_mount.started()

    def restart() -> None:
        for number in range(3):
            assert tiny_mount.ask(command="restart-daemon")["ok"]
            wait_for(partial(has_restarted, tiny_mount, number + 1), "a restart")

    under_load(tiny_mount, 4, restart)


def start_reader(mount: TinyMount, *, direct: bool) -> subprocess.Popen[bytes]:
    """A process that blocks in a read of the last MiB."""
    flags = "os.O_RDONLY | os.O_DIRECT" if direct else "os.O_RDONLY"
    code = (
        "import mmap, os, sys\n"
        f"fd = os.open(sys.argv[1], {flags})\n"
        "print('open', flush=True)\n"
        f"os.preadv(fd, [mmap.mmap(-1, 4096)], {SIZE - (1 << 20)})\n"
    )
    command = [sys.executable, "-c", code, str(mount.data)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout
    assert process.stdout.readline() == b"open\n"
    return process


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("stopped", [True, False])
def test_killed_reader_ends_at_once(tiny_mount: TinyMount, direct: bool, stopped: bool) -> None:
    tiny_mount.started("hang")
    process = start_reader(tiny_mount, direct=direct)
    wait_for(lambda: tiny_mount.lane("kept") > 0, "the read")
    if stopped:
        tiny_mount.signal_daemon(signal.SIGSTOP)
    with process:
        process.kill()
        begin = time.monotonic()
        process.wait(5)
        assert time.monotonic() - begin < 1
    if direct:
        assert tiny_mount.lane("answered_killed") >= 1  # the read, and the flush at its end


def test_ordinary_signal_does_not_fail_a_request(tiny_mount: TinyMount) -> None:
    tiny_mount.started("slow-lookup", value=1.0)
    sizes: list[int] = []
    thread = threading.Thread(
        target=lambda: sizes.append(os.stat(tiny_mount.data).st_size), daemon=True
    )
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        thread.start()
        wait_for(lambda: tiny_mount.lane("kept") > 0, "the lookup")
        assert thread.ident
        signal.pthread_kill(thread.ident, signal.SIGUSR1)
        wait_for(lambda: tiny_mount.lane("interrupts") == 1, "the interrupt")
        thread.join(DEADLINE_S)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert sizes == [SIZE]
    assert tiny_mount.lane("answered_killed") == 0


@pytest.mark.parametrize("signal_first", [True, False])
def test_killed_in_a_lookup(tiny_mount: TinyMount, signal_first: bool) -> None:
    """The kernel tells only of the first signal; the lane has to look for the one that kills."""
    tiny_mount.started("slow-lookup", value=3600)
    code = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGUSR1, lambda *_: None)\n"
        "os.stat(sys.argv[1])\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tiny_mount.data)]) as process:
        wait_for(lambda: tiny_mount.lane("kept") > 0, "the lookup")
        if signal_first:
            process.send_signal(signal.SIGUSR1)
            wait_for(lambda: tiny_mount.lane("interrupts") == 1, "the interrupt")
        process.kill()
        begin = time.monotonic()
        process.wait(5)
        assert time.monotonic() - begin < 1
    assert tiny_mount.lane("interrupts") == 1
    assert tiny_mount.lane("answered_killed") == 1


def test_status_while_the_daemon_is_stopped(tiny_mount: TinyMount) -> None:
    tiny_mount.started()
    pid = tiny_mount.signal_daemon(signal.SIGSTOP)
    with subprocess.Popen(["cat", str(tiny_mount.data)], stdout=subprocess.DEVNULL) as process:
        wait_for(lambda: tiny_mount.lane("kept") > 0, "the waiting request")
        begin = time.monotonic()
        assert tiny_mount.status()["state"] == "serving"
        assert time.monotonic() - begin < 1
        os.kill(pid, signal.SIGCONT)
        assert process.wait(DEADLINE_S) == 0


def test_daemon_that_never_comes_back(tiny_mount: TinyMount) -> None:
    """Reads get EIO after the deadline, status tells why, and an unmount still works."""
    tiny_mount.started("dies-at-restart", "--request-deadline-s", "1")
    with tiny_mount.data.open("rb", buffering=0) as file:
        pid = tiny_mount.signal_daemon(signal.SIGKILL)
        wait_for(lambda: not exists(pid), "the daemon's death")
        with pytest.raises(OSError, match="Input/output error"):
            os.pread(file.fileno(), 4096, 0)
    assert tiny_mount.lane("answered_outage") >= 1
    wait_for(lambda: tiny_mount.part("daemon")["state"] == "backoff", "the backoff")
    last_exit = tiny_mount.part("daemon")["last_exit"]
    assert isinstance(last_exit, dict)
    assert last_exit["code"] == 9
    supervisor_pid = tiny_mount.pid()
    assert tiny_mount.ask(command="unmount")["ok"]
    wait_for(lambda: not exists(supervisor_pid), "the end of the supervisor")


def test_answer_that_never_comes(tiny_mount: TinyMount) -> None:
    tiny_mount.started("hang", "--answer-deadline-s", "1")
    with pytest.raises(OSError, match="Input/output error"):
        read_direct(tiny_mount.data, 0, 4096)
    assert tiny_mount.lane("answered_late") == 1
    assert tiny_mount.lane("resent") == 1


def test_notifications_during_lookups(tiny_mount: TinyMount) -> None:
    tiny_mount.started("notify")

    def look() -> None:
        for _ in range(200):
            assert (tiny_mount.mountpoint / "data").stat().st_size == SIZE
            assert not (tiny_mount.mountpoint / "absent").exists()

    threads = [threading.Thread(target=look, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert not any(thread.is_alive() for thread in threads), "a lookup hangs"
    assert tiny_mount.lane("notifications") > 0
    assert tiny_mount.lane("notifications_dropped") == 0


def test_long_queue(tiny_mount: TinyMount) -> None:
    """Many requests while the daemon is stopped, and then killed: none is lost."""
    tiny_mount.started()
    assert tiny_mount.data.stat().st_size == SIZE
    pid = tiny_mount.signal_daemon(signal.SIGSTOP)
    outcome: list[bool] = []

    def read(number: int) -> None:
        offset = number * 4096 % SIZE
        outcome.append(read_direct(tiny_mount.data, offset, 4096) == expected(2, offset, 4096))

    threads = [threading.Thread(target=read, args=(n,), daemon=True) for n in range(250)]
    for thread in threads:
        thread.start()
    wait_for(lambda: tiny_mount.lane("kept") >= 128, "as many requests as the kernel sends")
    os.kill(pid, signal.SIGKILL)
    for thread in threads:
        thread.join(DEADLINE_S)
    assert outcome == [True] * 250


def test_daemons_that_keep_dying_over_a_read_do_not_make_it_wait_for_ever(
    tiny_mount: TinyMount,
) -> None:
    """Each daemon lives a moment, so neither deadline is reached; the age of the request counts."""
    deadlines = ("--request-deadline-s", "3", "--answer-deadline-s", "3")
    tiny_mount.started("dies-at-reads", *deadlines)  # each within the first of them, if slowly
    began = time.monotonic()
    with pytest.raises(OSError, match="Input/output error"):
        read_direct(tiny_mount.data, 0, 4096)
    assert 8.5 < time.monotonic() - began < 21
    assert tiny_mount.lane("answered_outage") >= 1
