"""Hits that are on the disk: past the page cache or by threads, never wrong, never stuck."""

import ctypes
import errno
import os
import platform
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.mount.fixtures import Images
from tests.mount.mounts import (
    Mount,
    Mounts,
    exists,
    forget_pages,
    make_resident,
    read_direct,
    wait_for,
)
from tests.mount.samples import KIB

pytestmark = pytest.mark.mount

IO_SETUP = {"x86_64": 206, "aarch64": 0}
NAME = "64k/mixture"

FORBIDDING = """
import ctypes, os, struct, sys
number, program, *arguments = int(sys.argv[1]), *sys.argv[2:]
EPERM, ALLOWED = 0x00050001, 0x7FFF0000
steps = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, EPERM), (0x06, 0, 0, ALLOWED)]
code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
filters = struct.pack("@HP", len(steps), ctypes.addressof(code))
prctl = ctypes.CDLL(None, use_errno=True).prctl
assert prctl(38, 1, 0, 0, 0) == 0, "PR_SET_NO_NEW_PRIVS"
assert prctl(22, 2, ctypes.create_string_buffer(filters), 0, 0) == 0, "PR_SET_SECCOMP"
os.execv(program, [program, *arguments])
"""
"""Runs a program in which one system call is forbidden: NUMBER PROGRAM ARGUMENTS..."""


def is_told_what_is_in_memory() -> bool:
    """Return whether this kernel has cachestat (Linux 6.5): no read goes past the cache without."""
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.syscall(451, -1, None, None, 0) < 0 and ctypes.get_errno() == errno.EBADF)


past_the_page_cache = pytest.mark.skipif(
    not is_told_what_is_in_memory(), reason="the kernel has no cachestat (before Linux 6.5)"
)


def counted(mount: Mount) -> tuple[int, int]:
    """Return how many hits waited for the disk, and how many of them went past the page cache."""
    found = mount.supervised()["lane"]
    return found["reads"]["disk_reads"], found["disk_direct"]


class ColdReads:
    """Threads that read at random, and compare, while nothing stays in the page cache."""

    def __init__(self, mount: Mount, path: Path, data: bytes) -> None:
        self._segments = mount.cache / "segments"
        self._fd = os.open(path, os.O_RDWR)  # its reads never come from the mount's page cache
        self._data = data
        self._stop = threading.Event()
        self.reads = 0
        self.wrong: list[str] = []

    def read(self, seed: int) -> None:
        choice = random.Random(seed)
        while not self._stop.is_set():
            at = choice.randrange(len(self._data) // 4096) * 4096
            try:
                is_right = os.pread(self._fd, 4096, at) == self._data[at : at + 4096]
            except OSError as error:
                self.wrong.append(str(error))
            else:
                self.reads += 1
                self.wrong += [] if is_right else [f"wrong bytes at {at}"]

    def forget(self) -> None:
        while not self._stop.wait(0.02):
            forget_pages(self._segments)

    @contextmanager
    def running(self) -> Iterator[None]:
        threads = [threading.Thread(target=self.read, args=(seed,)) for seed in range(8)]
        threads.append(threading.Thread(target=self.forget))
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(60)
            os.close(self._fd)
        assert not any(thread.is_alive() for thread in threads), "a read hangs"
        assert self.wrong == []


@pytest.fixture
def image(images: Images) -> bytes:
    return images.data[NAME]


@pytest.fixture
def mount(mounts: Mounts, images: Images, image: bytes) -> Mount:
    """A mount of which one image is wholly in L1."""
    mount = mounts(images.store.url).start()
    make_resident(mount, mount / NAME, image)
    mount.wait_for_commits(NAME)
    return mount


def filled_blocks(data: bytes) -> list[int]:
    """Return where 4 KiB are that no chunk of zeros has."""
    blocks = range(0, len(data) - 64 * KIB, 64 * KIB)
    return [at for at in blocks if any(data[at : at + 64 * KIB])]


@past_the_page_cache
def test_what_is_read_once_goes_past_the_page_cache_and_what_is_read_twice_into_it(
    mount: Mount, image: bytes
) -> None:
    places = filled_blocks(image)
    forget_pages(mount.cache / "segments")
    for at in places:
        assert read_direct(mount / NAME, at, 4096) == image[at : at + 4096]
    waited, past = counted(mount)
    assert past >= len(places) - 2  # the first one is tried from memory
    for _ in range(2):
        for at in places:
            assert read_direct(mount / NAME, at, 4096) == image[at : at + 4096]
    assert counted(mount)[0] <= waited + len(places)  # at the third time all of it is in memory
    before = counted(mount)
    for at in places:
        assert read_direct(mount / NAME, at, 4096) == image[at : at + 4096]
    assert counted(mount) == before


def test_threads_wait_for_the_disk_where_asynchronous_reads_are_forbidden(
    mounts: Mounts, images: Images, image: bytes
) -> None:
    number = IO_SETUP.get(platform.machine())
    if number is None:
        pytest.skip(f"the number of io_setup is not known here ({platform.machine()})")
    mount = mounts(images.store.url)
    mount.launcher = [sys.executable, "-c", FORBIDDING, str(number)]
    mount.start()
    make_resident(mount, mount / NAME, image)
    reads = ColdReads(mount, mount / NAME, image)
    with reads.running():
        wait_for(lambda: counted(mount)[0] > 50, "reads from the disk")
    assert counted(mount)[1] == 0


@past_the_page_cache
def test_daemons_stop_die_and_start_while_the_disk_reads_for_the_lane(
    mount: Mount, image: bytes
) -> None:
    """A start is a fork of the supervisor, into whose memory the disk writes meanwhile."""
    reads = ColdReads(mount, mount / NAME, image)
    with reads.running():
        pid = mount.kill_daemon(signal.SIGSTOP)
        before, count = counted(mount)[1], reads.reads
        wait_for(lambda: counted(mount)[1] > before + 50, "reads while it is stopped")
        os.kill(pid, signal.SIGCONT)
        assert reads.reads > count
        for _ in range(3):
            mount.kill_daemon_and_wait()
            before = counted(mount)[1]
            wait_for(lambda: counted(mount)[1] > before + 50, "more reads")  # noqa: B023
    wait_for(lambda: mount.supervised()["lane"]["kept"] == 0, "nothing to be kept")
    assert mount.metrics()["l3_chunks"] == 0


def test_a_mount_ends_while_the_disk_reads_for_it(mount: Mount, image: bytes) -> None:
    supervisor = mount.supervised()["pid"]
    reads = ColdReads(mount, mount / NAME, image)
    with reads.running():
        time.sleep(0.3)
        subprocess.run(["fusermount3", "-u", "-z", mount.mountpoint], check=True)
        time.sleep(0.3)
        assert exists(supervisor)  # the file is open
    wait_for(lambda: not exists(supervisor), "the end of the supervisor")
    assert reads.reads > 0
