"""The disk of L1 fails: reads are served from the next tier, and L1 comes back by itself."""

import errno
import os
import shutil
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cachefs.store.store import Store
from tests.disk.faulty import FaultyDisk
from tests.fault.test_mount_outage import seconds
from tests.mount.mounts import Mount, Mounts, read_direct, wait_for
from tests.mount.samples import KIB, noise
from tests.stores import import_bytes, new_store

pytestmark = pytest.mark.mount

CHUNK_BYTES = 64 * KIB
WARM, COLD = noise(16 * CHUNK_BYTES, 1), noise(64 * CHUNK_BYTES, 2)

FAULTS = {
    "EIO": {"reads": errno.EIO, "writes": errno.EIO},
    "EIO of reads": {"reads": errno.EIO},
    "ENOSPC": {"writes": errno.ENOSPC},
    "read-only": {"writes": errno.EROFS},
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = new_store(tmp_path)
    import_bytes(store, WARM, "warm", CHUNK_BYTES)
    import_bytes(store, COLD, "cold", CHUNK_BYTES)
    return store


@pytest.fixture
def broken(mounts: Mounts, store: Store, tmp_path: Path) -> Iterator[tuple[Mount, FaultyDisk]]:
    """A mount with an image in L1, of another only the table, and its disk, which is well yet."""
    mount = mounts(store.url)
    disk = FaultyDisk(mount.cache, tmp_path)
    mount.environment |= disk.environment
    mount.start("scrub=0,fetchers=2,refresh=0.5")
    assert read_direct(mount / "warm") == WARM
    with (mount / "cold").open("rb"):
        pass
    mount.wait_for_commits("warm")
    yield mount, disk
    disk.close()


def part(number: int, count: int = 8) -> tuple[int, bytes]:
    at = number * CHUNK_BYTES
    return at, COLD[at : at + count * CHUNK_BYTES]


def read_part(mount: Mount, number: int, count: int = 8) -> bytes:
    return read_direct(mount / "cold", number * CHUNK_BYTES, count * CHUNK_BYTES)


def is_kept(mount: Mount, number: int) -> bool:
    """Whether what is read twice comes from L1 the second time, as it should."""
    before = mount.metrics()["l3_chunks"]
    for _ in range(2):
        assert read_part(mount, number, 1) == part(number, 1)[1]
    return mount.metrics()["l3_chunks"] <= before + 1


@pytest.mark.parametrize("name", FAULTS)
def test_a_disk_that_fails_fails_no_read(broken: tuple[Mount, FaultyDisk], name: str) -> None:
    mount, disk = broken
    disk.fail(**FAULTS[name])
    for _ in range(2):
        assert (read_direct(mount / "warm") == WARM) is True
        assert (read_part(mount, 0) == part(0)[1]) is True
        assert (read_part(mount, 8) == part(8)[1]) is True
    assert mount.metrics()["read_errors"] == 0
    assert mount.metrics()["l1_errors"] > 0
    disk.heal()
    wait_for(lambda: is_kept(mount, 40), "an L1 that keeps again")
    assert (read_direct(mount / "cold") == COLD) is True
    assert (read_direct(mount / "warm") == WARM) is True
    mount.check_idle()
    mount.check_slots()
    metrics = mount.metrics()
    assert (metrics["read_errors"], metrics["l1_corrupt"], metrics["fetcher_deaths"]) == (0, 0, 0)


def test_a_daemon_dies_and_starts_on_a_disk_that_fails(
    broken: tuple[Mount, FaultyDisk],
) -> None:
    """What it can't open yet it opens when the disk is back; hits of the lane go on."""
    mount, disk = broken
    disk.fail(writes=errno.ENOSPC)
    mount.kill_daemon_and_wait()
    assert (read_direct(mount / "warm") == WARM) is True
    assert (read_part(mount, 0) == part(0)[1]) is True
    disk.heal()
    wait_for(lambda: is_kept(mount, 40), "an L1 that keeps again")
    assert (read_direct(mount / "cold") == COLD) is True


@pytest.mark.parametrize("fault", [{"reads": errno.EIO}, {"delay_s": 15}], ids=["EIO", "hangs"])
def test_a_daemon_starts_without_l1_while_its_disk_cannot_be_read(
    broken: tuple[Mount, FaultyDisk], store: Store, fault: dict[str, Any]
) -> None:
    """What an earlier version was goes on to be read, by who has it open."""
    mount, disk = broken
    with (mount / "cold").open("rb", buffering=0) as opened:
        import_bytes(store, WARM, "cold", CHUNK_BYTES)
        wait_for(lambda: (mount / "cold").stat().st_size == len(WARM), "the new version")
        disk.fail(**fault)
        os.kill(mount.daemon_pid(), signal.SIGKILL)
        assert (opened.read(8 * CHUNK_BYTES) == part(0)[1]) is True
        assert (read_direct(mount / "cold") == WARM) is True
        assert (read_direct(mount / "warm") == WARM) is True
        assert mount.metrics()["l1_left"] == 1
        assert mount.metrics()["read_errors"] == 0
        assert mount.daemon()["l1"]["quota_bytes"] == 0
        disk.heal()
        wait_for(lambda: mount.metrics()["l1_left"] == 0, "a daemon with L1")
        assert (opened.read(len(COLD)) == COLD[8 * CHUNK_BYTES :]) is True
    assert (read_direct(mount / "warm") == WARM) is True
    mount.check_idle()
    mount.check_slots()
    assert mount.metrics()["read_errors"] == 0


def test_a_daemon_with_l1_starts_without_a_spare_folder(broken: tuple[Mount, FaultyDisk]) -> None:
    mount, _ = broken
    shutil.rmtree(mount.run_folder / "spare")
    (mount.run_folder / "spare").write_bytes(b"in the way")
    mount.kill_daemon_and_wait()
    assert (read_part(mount, 0) == part(0)[1]) is True
    assert mount.daemon()["l1"]["quota_bytes"] > 0
    assert is_kept(mount, 40)


def test_a_daemon_after_one_that_could_not_read_what_it_mapped_has_l1(
    broken: tuple[Mount, FaultyDisk],
) -> None:
    mount, _ = broken
    old = mount.daemon_pid()
    os.kill(old, signal.SIGBUS)
    wait_for(lambda: mount.supervised()["daemon"]["restarts"] == 1, "the next daemon")
    assert (read_part(mount, 0) == part(0)[1]) is True
    assert b"--wary" in Path(f"/proc/{mount.daemon_pid()}/cmdline").read_bytes()
    assert is_kept(mount, 40)


def test_the_scrub_of_a_disk_that_cannot_be_read_gives_up_no_chunk(
    broken: tuple[Mount, FaultyDisk],
) -> None:
    """But for the few that show that it is the disk; it goes on when the disk is back."""
    mount, disk = broken
    assert (read_direct(mount / "cold") == COLD) is True
    chunks = mount.daemon()["l1"]["resident_chunks"]
    disk.fail(reads=errno.EIO)
    with ThreadPoolExecutor(1) as pool:
        scrub = pool.submit(mount.scrub)
        wait_for(lambda: mount.metrics()["l1_left"], "an L1 that is left alone")
        time.sleep(1)
        disk.heal()
        found = scrub.result()
    assert found["dropped_chunks"] <= 4
    assert mount.daemon()["l1"]["resident_chunks"] >= chunks - 4
    assert mount.metrics()["l1_left"] == 0


def test_local_tables_on_a_disk_that_cannot_be_read(broken: tuple[Mount, FaultyDisk]) -> None:
    """The next daemon needs them: they come from the store, and lie elsewhere then."""
    mount, disk = broken
    mount.kill_daemon_and_wait()
    disk.fail(reads=errno.EIO)
    assert (read_part(mount, 0) == part(0)[1]) is True
    assert (read_direct(mount / "warm") == WARM) is True
    assert mount.metrics()["read_errors"] == 0
    disk.heal()
    wait_for(lambda: is_kept(mount, 40), "an L1 that keeps again")


def test_a_disk_that_is_slow_by_five_seconds(broken: tuple[Mount, FaultyDisk]) -> None:
    mount, disk = broken
    disk.fail(delay_s=5)
    begun_s = time.monotonic()
    for number in range(4):
        assert (
            read_direct(mount / "warm", number * CHUNK_BYTES, CHUNK_BYTES)
            == (WARM[number * CHUNK_BYTES : (number + 1) * CHUNK_BYTES])
        )
        assert (read_part(mount, 2 * number, 2) == part(2 * number, 2)[1]) is True
    assert time.monotonic() - begun_s < 20
    # L1 is left alone by now: what it has and what it has not comes from the store at once.
    assert seconds(lambda: read_direct(mount / "warm", 8 * CHUNK_BYTES, CHUNK_BYTES)) < 3
    assert seconds(lambda: read_part(mount, 32, 1)) < 3
    disk.heal()
    wait_for(lambda: is_kept(mount, 40), "an L1 that keeps again")
    fetched = mount.metrics()["l3_chunks"]
    assert (read_direct(mount / "warm") == WARM) is True
    assert mount.metrics()["l3_chunks"] == fetched
    assert mount.metrics()["read_errors"] == 0
    mount.check_idle()
    mount.check_slots()
