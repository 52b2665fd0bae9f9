"""Processes of a mount are killed or hang while it is read: no read fails, hangs or lies."""

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.mount.fio import Fio
from tests.mount.fixtures import Images
from tests.mount.mounts import Mount, Mounts, exists, read_direct, wait_for

pytestmark = pytest.mark.mount

KILLS = int(os.environ.get("CACHEFS_KILLS", "20"))
"""`make stress` makes it 100."""
LONGEST_READ_S = float(os.environ.get("CACHEFS_LONGEST_READ_S", "inf"))
"""`make stress` makes it 2: what is promised on a machine that has something to spare."""
SLACK_S = 3.5
"""Besides the longest time in which no daemon served, on a machine that has not."""
# A quarter of the image: most reads miss, many hit.
QUOTA = "quota=8MiB"


@pytest.fixture
def mount(mounts: Mounts, images: Images) -> Mount:
    """All images, with an L1 that holds a part of what is read."""
    return mounts(images.store.url).start(f"{QUOTA},fetchers=2")


@pytest.fixture
def fio(mount: Mount) -> Iterator[Fio]:
    """An endless run of checked random reads, 16 at a time, past the page cache."""
    running = Fio(mount / "pattern", passes=1000)
    try:
        yield running
    finally:
        running.end()


def wait_for_reads(mount: Mount, fio: Fio, count: int) -> None:
    """Wait until this daemon has answered so many reads, hits and misses among them."""

    def is_busy() -> bool:
        assert fio.is_running(), fio.result()  # it ends at the first read that is not right
        metrics = mount.metrics()
        return metrics["reads"] >= count and metrics["miss_chunks"] > 0

    wait_for(is_busy, f"{count} reads")


@pytest.mark.slow
@pytest.mark.timeout(180 + 12 * KILLS)
def test_the_daemon_is_killed_many_times(mount: Mount, fio: Fio) -> None:
    choice = random.Random(1)
    hits, longest_s, since_s = 0, 0.0, time.monotonic()
    for number in range(KILLS):
        if number % 4 != 3:  # those die while they begin
            wait_for(lambda: mount.metrics()["l3_chunks"] >= 16, "a daemon that serves")
            longest_s = max(longest_s, time.monotonic() - since_s)
            time.sleep(choice.uniform(0, 1.5))
            hits, since_s = mount.supervised()["lane"]["reads"]["hits"], time.monotonic()
        assert fio.is_running(), fio.result()
        mount.kill_daemon_and_wait()
    wait_for_reads(mount, fio, 200)
    longest_s = max(longest_s, time.monotonic() - since_s)
    assert fio.stop() > KILLS * 16
    assert fio.longest_s < min(LONGEST_READ_S, longest_s + SLACK_S)
    mount.check_slots()
    assert hits > 0
    assert mount.supervised()["daemon"]["restarts"] == KILLS
    assert mount.supervised()["lane"]["resent"] > 0  # it did hold reads when it died
    assert mount.metrics()["read_errors"] == 0


@pytest.mark.slow
def test_fetchers_are_killed(mount: Mount, fio: Fio) -> None:
    for _ in range(6):
        metrics = mount.metrics()
        wait_for_reads(mount, fio, metrics["reads"] + 300)
        victims = mount.daemon()["fetchers"]["pids"]
        for pid in victims[: random.Random(len(victims)).randint(1, 2)]:
            with suppress(ProcessLookupError):  # it is told of until its end is seen
                os.kill(pid, signal.SIGKILL)
        wait_for(lambda: len(mount.daemon()["fetchers"]["pids"]) == 2, "new fetchers")
    assert fio.stop() > 0
    metrics = mount.metrics()
    assert metrics["fetcher_deaths"] >= 6
    assert metrics["read_errors"] == 0
    mount.check_idle()
    mount.check_slots()


def test_a_fetcher_that_hangs_is_replaced(mounts: Mounts, images: Images) -> None:
    mount = mounts(images.store.url).start("fetchers=1,job_timeout=4,refresh=3600")
    assert read_direct(mount / "64k/page") == images.data["64k/page"]
    (hanging,) = mount.daemon()["fetchers"]["pids"]
    os.kill(hanging, signal.SIGSTOP)
    name = "64k/mixture"
    assert read_direct(mount / name) == images.data[name]
    assert not exists(hanging)
    assert mount.metrics()["fetcher_deaths"] == 1
    assert f"fetcher {hanging} is silent" in mount.log()


def test_reads_of_l1_go_on_while_every_fetcher_hangs(mounts: Mounts, images: Images) -> None:
    mount = mounts(images.store.url).start("fetchers=1,job_timeout=60,refresh=3600,read_deadline=4")
    name = "64k/mixture"
    read_direct(mount / name)
    (hanging,) = mount.daemon()["fetchers"]["pids"]
    os.kill(hanging, signal.SIGSTOP)
    with pytest.raises(OSError, match="Input/output error"):
        read_direct(mount / "pattern", 0, 65536)
    assert read_direct(mount / name) == images.data[name]
    os.kill(hanging, signal.SIGCONT)
    assert read_direct(mount / "pattern", 0, 65536) == images.data["pattern"][:65536]


def test_the_daemon_is_killed_while_files_open_and_folders_are_listed(
    mount: Mount, images: Images
) -> None:
    """Not only reads: every request waits for the next daemon."""
    names = sorted(images.data)
    for number in range(6):
        mount.kill_daemon()
        for name in names[number::6]:
            assert (mount / name).stat().st_size == len(images.data[name])
            assert (mount / name).read_bytes() == images.data[name], name
        assert len(os.listdir(mount / "64k")) == 9
        assert os.getxattr(mount / "64k/page", "user.cachefs.version") == b"1"
