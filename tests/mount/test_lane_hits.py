"""Reads that the lane answers: which they are, that every byte is right, whom they need not."""

import errno
import fcntl
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.mount.fixtures import Images
from tests.mount.mounts import (
    Mount,
    Mounts,
    exists,
    forget_pages,
    lane,
    make_resident,
    read_direct,
    wait_for,
)
from tests.mount.samples import KIB, MIB

pytestmark = pytest.mark.mount

STRESS_S = float(os.environ.get("CACHEFS_STRESS_S", "10"))
"""How long the stress under eviction runs; `make stress` runs it for a minute."""
NAMES = ["4k/mixture", "64k/mixture", "64k/sparse", "1024k/mixture", "pattern"]


@pytest.fixture
def mount(mounts: Mounts, images: Images) -> Mount:
    return mounts(images.store.url).start()


@pytest.fixture
def image(images: Images) -> bytes:
    return images.data["64k/mixture"]


@pytest.fixture
def resident(mount: Mount, image: bytes) -> Path:
    """An image that is wholly in L1, committed, and the lane knows it."""
    path = mount / "64k/mixture"
    make_resident(mount, path, image)
    mount.wait_for_commits("64k/mixture")
    return path


# ---- which reads are hits ----


def test_what_was_read_once_is_a_hit_whatever_kind_it_is(mount: Mount, images: Images) -> None:
    hits = lane(mount, "hits")
    for name, data in images.data.items():
        make_resident(mount, mount / name, data)
    assert lane(mount, "hits") > hits
    assert lane(mount, "zero_chunks") > 0


def test_reads_of_odd_places_that_span_chunks_are_hits(mount: Mount, images: Images) -> None:
    choice = random.Random(1)
    for name in NAMES:
        make_resident(mount, mount / name, images.data[name])
    passed = lane(mount, "passed_reads")
    for name in NAMES:
        data = images.data[name]
        fd = os.open(mount / name, os.O_RDWR)  # not through the page cache, and not aligned
        try:
            for _ in range(200):
                size = choice.choice([0, 1, 4095, 4097, 65537, 300_001, MIB])
                at = choice.choice([choice.randrange(len(data)), max(0, len(data) - size // 2)])
                assert os.pread(fd, size, at) == data[at : at + size], (name, at, size)
            assert os.pread(fd, 10, len(data)) == b""
            assert os.pread(fd, 10, len(data) + MIB) == b""
        finally:
            os.close(fd)
    assert lane(mount, "passed_reads") == passed


def test_an_image_whose_chunks_another_one_brought_in_gets_its_hints_when_it_is_opened(
    mounts: Mounts, images: Images, image: bytes
) -> None:
    mount = mounts(images.store.url).start()
    path = mount / "64k/mixture"
    assert read_direct(path) == image
    mount.umount()
    mount.start()  # all is in L1, and the lane knows nothing yet
    with path.open("rb"):
        read_chunks = mount.metrics()["l1_hit_chunks"]
        assert read_chunks == 0
        wait_for(lambda: read_direct(path, 0, 4096) and lane(mount, "hits"), "hints")
        time.sleep(0.2)
        passed = lane(mount, "passed_reads")
        assert read_direct(path) == image
        zeros = lane(mount, "passed_reads") - passed
        assert zeros < 5  # runs of zero chunks get theirs when they are read
        assert mount.metrics()["miss_chunks"] == 0


@pytest.mark.parametrize("options", ["nolane_hits", "verify=read"])
def test_hits_can_be_turned_off(mounts: Mounts, images: Images, image: bytes, options: str) -> None:
    mount = mounts(images.store.url).start(options)
    for _ in range(2):
        assert read_direct(mount / "64k/mixture") == image
    assert lane(mount, "hits") == 0
    assert lane(mount, "passed_reads") > 0
    assert mount.metrics()["l1_hit_chunks"] > 0


def test_status_and_metrics_count_what_the_lane_served(mount: Mount, resident: Path) -> None:
    hits = lane(mount, "hits")
    assert hits > 0
    wait_for(lambda: mount.metrics()["lane_hits"] == hits, "the daemon to know")
    assert sum(lane_latencies(mount)) == hits
    text = mount.command("status", mount.mountpoint).stdout
    assert f"{hits} by the lane" in text


def lane_latencies(mount: Mount) -> list[int]:
    found: list[int] = mount.supervised()["lane"]["reads"]["latencies"]
    return found


def test_what_the_lane_serves_is_used_lately_for_eviction(mounts: Mounts, images: Images) -> None:
    """A hot image is read through the lane alone while cold ones stream by."""
    mount = mounts(images.store.url).start("quota=8MiB")
    hot, data = mount / "64k/mixture", images.data["64k/mixture"][:MIB]
    assert read_direct(hot, 0, MIB) == data
    for offset in range(0, 32 * MIB, 256 * KIB):
        read_direct(mount / "pattern", offset, 256 * KIB)
        assert read_direct(hot, 0, MIB) == data
        time.sleep(0.005)  # what was read is digested every 50 ms
    metrics = mount.metrics()
    assert metrics["evicted_chunks"] > 100
    fetched = metrics["l3_chunks"]
    assert read_direct(hot, 0, MIB) == data
    assert mount.metrics()["l3_chunks"] == fetched
    assert fetched < 32 * 16 + 80  # the hot one was fetched once, or nearly so


# ---- every byte, whatever happens to the slots ----


class Comparer(threading.Thread):
    """Reads at random past the page cache, and compares every byte."""

    def __init__(self, mount: Mount, images: Images, seed: int, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.choice = random.Random(seed)
        self.files = [(mount / name, images.data[name]) for name in NAMES]
        self.stop = stop
        self.reads = 0
        self.longest_s = 0.0
        self.failures: list[str] = []
        self.wrong: list[str] = []

    def run(self) -> None:
        while not self.stop.is_set() and len(self.wrong) < 5:
            path, data = self.choice.choice(self.files)
            size = self.choice.choice([4 * KIB, 4 * KIB, 64 * KIB, 128 * KIB, MIB])
            at = self.choice.randrange(len(data) // 4096) * 4096
            begin_s = time.monotonic()
            try:
                found = read_direct(path, at, min(size, len(data) - at))
            except OSError as error:
                self.failures.append(f"{path.name} {at} {size}: {error}")
                continue
            self.longest_s = max(self.longest_s, time.monotonic() - begin_s)
            if found != data[at : at + size]:
                self.wrong.append(f"{path.name} {at} {size}: wrong bytes")
            self.reads += 1


def under_comparison(
    mount: Mount, images: Images, count: int, action: Callable[[], object]
) -> list[Comparer]:
    stop = threading.Event()
    comparers = [Comparer(mount, images, seed, stop) for seed in range(count)]
    for comparer in comparers:
        comparer.start()
    try:
        action()
    finally:
        stop.set()
        for comparer in comparers:
            comparer.join(60)
    assert not any(comparer.is_alive() for comparer in comparers), "a read hangs"
    assert [wrong for comparer in comparers for wrong in comparer.wrong] == []
    return comparers


@pytest.mark.slow
@pytest.mark.timeout(300 + 3 * STRESS_S)
@pytest.mark.parametrize("policy", ["2q", "lru", "ml"])
def test_no_wrong_byte_while_slots_are_filled_and_emptied_as_fast_as_can_be(
    mounts: Mounts, images: Images, policy: str
) -> None:
    mount = mounts(images.store.url).start(f"quota=4MiB,fetchers=2,eviction={policy}")

    def stress() -> None:  # beside other work it takes longer to evict so many
        end_s = time.monotonic() + 3 * STRESS_S
        time.sleep(STRESS_S)
        while mount.metrics()["evicted_chunks"] <= wanted and time.monotonic() < end_s:
            time.sleep(0.5)

    wanted = 200 * STRESS_S
    comparers = under_comparison(mount, images, 8, stress)
    assert [failure for comparer in comparers for failure in comparer.failures] == []
    metrics, reads = mount.metrics(), mount.supervised()["lane"]["reads"]
    assert metrics["evicted_chunks"] > wanted
    assert reads["hits"] > 0
    assert reads["moved"] + reads["changed"] > 0
    assert metrics["read_errors"] == 0
    assert all(comparer.reads > 10 for comparer in comparers)


@pytest.mark.slow
def test_no_wrong_byte_when_the_index_is_lost_and_the_segments_are_made_again(
    mounts: Mounts, images: Images
) -> None:
    mount = mounts(images.store.url).start("quota=16MiB,fetchers=2")

    def lose_the_index() -> None:
        for _ in range(3):
            time.sleep(1)
            pid = mount.daemon_pid()
            os.kill(pid, signal.SIGSTOP)
            index = mount.cache / "index.lmdb/data.mdb"
            index.write_bytes(b"no index at all" * 1000)
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda pid=pid: not exists(pid), "the end")  # type: ignore[misc]
            wait_for(lambda pid=pid: mount.daemon_pid() != pid, "the next")  # type: ignore[misc]
        time.sleep(1)

    # The names are in the index as well: until the store is listed again, opens fail.
    under_comparison(mount, images, 4, lose_the_index)
    hits = lane(mount, "hits")
    data = images.data["64k/page"]
    wait_for((mount / "64k/page").exists, "the store to be listed")
    for _ in range(2):
        assert read_direct(mount / "64k/page") == data
    wait_for(lambda: read_direct(mount / "64k/page") and lane(mount, "hits") > hits, "hits again")
    assert "is damaged" in mount.log()


def test_pages_that_are_not_in_memory_are_read_by_threads_of_their_own(
    mount: Mount, images: Images
) -> None:
    for name in NAMES:
        read_direct(mount / name)
    forget_pages(mount.cache / "segments")
    with ThreadPoolExecutor(40) as pool:
        jobs = [
            (name, offset)
            for name in NAMES
            for offset in range(0, len(images.data[name]) - 4096, 128 * KIB)
        ]
        random.Random(1).shuffle(jobs)
        found = pool.map(lambda job: read_direct(mount / job[0], job[1], 4096), jobs)
        for (name, offset), data in zip(jobs, found, strict=True):
            assert data == images.data[name][offset : offset + 4096], (name, offset)
    assert lane(mount, "disk_reads") > 0
    for count in ("kept", "readers_on_disk"):
        wait_for(lambda: mount.supervised()["lane"][count] == 0, f"no {count}")  # noqa: B023


# ---- whom hits do not need ----


def test_hits_go_on_while_the_daemon_is_stopped(
    mount: Mount, resident: Path, image: bytes, images: Images
) -> None:
    choice = random.Random(2)
    hot, cold = (os.open(path, os.O_RDWR) for path in (resident, mount / "pattern"))
    pid = mount.kill_daemon(signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(1) as pool:
            missing = pool.submit(os.pread, cold, 65536, 0)
            for _ in range(500):
                at = choice.randrange(len(image) - 5000)
                assert os.pread(hot, 5000, at) == image[at : at + 5000]
            assert not missing.done()
            os.kill(pid, signal.SIGCONT)
            assert missing.result(20) == images.data["pattern"][:65536]
    finally:
        os.kill(pid, signal.SIGCONT)
        os.close(hot)
        os.close(cold)


def kill_and_lock_out(mount: Mount, *folders: Path) -> list[int]:
    """Kill the daemon and take the locks of folders before the next one; returns their fds."""
    locks = [os.open(folder / "lock", os.O_RDWR) for folder in folders]
    with ThreadPoolExecutor(len(locks)) as pool:  # who waits for it already gets it first
        taken = [pool.submit(fcntl.flock, lock, fcntl.LOCK_EX) for lock in locks]
        time.sleep(0.2)
        mount.kill_daemon()
        for future in taken:
            future.result(20)
    return locks


def test_an_open_file_is_read_while_there_is_no_daemon(
    mounts: Mounts, images: Images, image: bytes
) -> None:
    """Somebody else has the locks of the cache folder and the spare one: no daemon can start."""
    mount = mounts(images.store.url).start()
    path = mount / "64k/mixture"
    make_resident(mount, path, image)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    other = os.open(path, os.O_RDWR)  # reads of it never come from the page cache
    passed = lane(mount, "passed_reads")
    locks = kill_and_lock_out(mount, mount.cache, mount.run_folder / "spare")
    try:
        choice = random.Random(3)
        end_s = time.monotonic() + 7
        while time.monotonic() < end_s:
            at = choice.randrange(len(image) - 5000)
            assert os.pread(other, 5000, at) == image[at : at + 5000]
        assert lane(mount, "passed_reads") == passed
        status = mount.supervised()["daemon"]
        assert status["state"] in {"starting", "backoff"}
        wait_for(lambda: mount.supervised()["daemon"]["last_exit"]["code"] == 6, "its failure")
        assert "in use by process" in mount.supervised()["daemon"]["last_exit"]["message"]
        text = mount.command("status", mount.mountpoint).stdout
        assert "backoff" in text or "starting" in text
        assert "in use by process" in text
    finally:
        for opened in (*locks, fd, other):
            os.close(opened)
    wait_for(lambda: mount.supervised()["daemon"]["state"] == "running", "a daemon")
    assert read_direct(mount / "pattern", 0, 4096) == images.data["pattern"][:4096]


def test_a_daemon_without_l1_serves_while_somebody_else_has_the_cache_folder(
    mounts: Mounts, images: Images, image: bytes
) -> None:
    """A fetcher that hangs on the disk of the cache would have its lock as well."""
    mount = mounts(images.store.url).start()
    path = mount / "64k/mixture"
    make_resident(mount, path, image)
    [lock] = kill_and_lock_out(mount, mount.cache)
    try:
        passed = lane(mount, "passed_reads")
        assert read_direct(path) == image  # by the lane
        assert lane(mount, "passed_reads") == passed
        assert read_direct(mount / "pattern") == images.data["pattern"]
        assert mount.metrics()["l1_left"] == 1
        assert "left alone" in mount.command("status", mount.mountpoint).stdout
    finally:
        os.close(lock)
    wait_for(lambda: mount.metrics()["l1_left"] == 0, "a daemon with L1")
    assert read_direct(path) == image
    assert mount.metrics()["read_errors"] == 0


def test_the_next_daemon_finds_what_the_last_one_told_the_lane(
    mount: Mount, resident: Path, image: bytes
) -> None:
    passed = lane(mount, "passed_reads")
    with resident.open("rb"):
        mount.kill_daemon_and_wait()
        assert read_direct(resident) == image
    assert lane(mount, "passed_reads") == passed
    assert mount.metrics()["l3_chunks"] == 0


def test_a_daemon_that_hangs_is_replaced(mounts: Mounts, images: Images) -> None:
    mount = mounts(images.store.url).start("heartbeat_timeout=3")
    time.sleep(4)
    assert mount.supervised()["daemon"]["restarts"] == 0  # idle is not silent
    pid = mount.kill_daemon(signal.SIGSTOP)
    begin_s = time.monotonic()
    assert read_direct(mount / "pattern", 0, MIB) == images.data["pattern"][:MIB]
    assert time.monotonic() - begin_s < 15
    assert not exists(pid)
    assert "no sign of life" in mount.supervised()["daemon"]["last_exit"]["message"]


def test_a_short_stop_is_no_hang(mounts: Mounts, images: Images) -> None:
    mount = mounts(images.store.url).start()
    pid = mount.kill_daemon(signal.SIGSTOP)
    time.sleep(3)
    os.kill(pid, signal.SIGCONT)
    assert read_direct(mount / "pattern", 0, MIB) == images.data["pattern"][:MIB]
    assert mount.daemon_pid() == pid


def test_a_mount_that_is_read_by_hits_is_busy_and_then_ends(
    mount: Mount, resident: Path, image: bytes
) -> None:
    fd = os.open(resident, os.O_RDWR)
    try:
        done = mount.command("umount", mount.mountpoint)
        assert done.returncode != 0
        assert os.pread(fd, 5000, 70000) == image[70000:75000]
        supervisor = mount.supervised()["pid"]
        subprocess.run(["fusermount3", "-u", "-z", mount.mountpoint], check=True)
        assert os.pread(fd, 5000, 70000) == image[70000:75000]
        assert exists(supervisor)
    finally:
        os.close(fd)
    wait_for(lambda: not exists(supervisor), "the end of the supervisor")


@pytest.mark.slow
def test_a_killed_supervisor_takes_the_daemon_along_even_a_stopped_one(
    mounts: Mounts, images: Images
) -> None:
    """The daemon has /dev/fuse open: a mount must not live on that nobody serves."""
    mount = mounts(images.store.url).start()
    daemon, supervisor = mount.daemon_pid(), mount.supervised()["pid"]
    os.kill(daemon, signal.SIGSTOP)
    os.kill(supervisor, signal.SIGKILL)
    wait_for(lambda: not exists(daemon), "the end of the daemon")

    def is_dead() -> bool:
        try:
            os.statvfs(mount.mountpoint)
        except OSError as error:  # ECONNABORTED if it was under way at the end
            return error.errno == errno.ENOTCONN
        return False

    wait_for(is_dead, "the end of the mount")
    assert mount.command("umount", mount.mountpoint).returncode == 0
