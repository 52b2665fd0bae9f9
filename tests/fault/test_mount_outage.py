"""The store goes away and comes back: what L1 holds is served, the rest waits or fails."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cachefs.store.store import Store
from tests.mount.mounts import Mount, Mounts, read_direct, wait_for
from tests.mount.samples import KIB, mixture, noise, store_path
from tests.stores import import_bytes, new_store

pytestmark = pytest.mark.mount

DEADLINE_S = 3
WARM, COLD = mixture(2048 * KIB, 1), noise(1024 * KIB, 2)
CHUNK_BYTES = 64 * KIB


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = new_store(tmp_path)
    import_bytes(store, WARM, "warm", CHUNK_BYTES)
    import_bytes(store, COLD, "cold", CHUNK_BYTES)
    import_bytes(store, noise(5000, 3), "unopened", CHUNK_BYTES)
    return store


@pytest.fixture
def mount(mounts: Mounts, store: Store) -> Mount:
    """One image in L1, of another only one chunk."""
    mount = mounts(store.url).start(f"read_deadline={DEADLINE_S},refresh=0.3")
    assert read_direct(mount / "warm") == WARM
    assert read_direct(mount / "cold", 0, CHUNK_BYTES) == COLD[:CHUNK_BYTES]
    mount.wait_for_commits("warm", "cold")
    return mount


class Outage:
    """Takes a store's folder away, and brings it back."""

    def __init__(self, path: Path, stand_in: Callable[[Path], object] = lambda path: None) -> None:
        self._path = path
        self._away = path.with_name(f"{path.name}.away")
        self._stand_in = stand_in

    def begin(self) -> None:
        self._path.rename(self._away)
        self._stand_in(self._path)

    def end(self) -> None:
        if self._path.is_dir():
            self._path.rmdir()
        else:
            self._path.unlink(missing_ok=True)
        self._away.rename(self._path)


def seconds(call: Callable[[], object]) -> float:
    begin_s = time.monotonic()
    call()
    return time.monotonic() - begin_s


def wait_until_told(mount: Mount) -> None:
    """Wait until the outage is known, which takes a fetcher: those of a new daemon begin slowly."""
    wait_for(lambda: mount.daemon()["store"]["error"], "an outage that is told")


def fail_to_read(mount: Mount, name: str, offset: int) -> None:
    with pytest.raises(OSError, match=r"\[Errno 5\]"):
        read_direct(mount / name, offset, CHUNK_BYTES)


OUTAGES = {
    "gone": lambda path: None,
    "a file": Path.touch,
    "an empty folder": Path.mkdir,  # a disk or network share that is not mounted
}


@pytest.mark.parametrize("kind", OUTAGES)
def test_the_folder_of_the_store_goes_away(mount: Mount, store: Store, kind: str) -> None:
    outage = Outage(store_path(store), OUTAGES[kind])
    outage.begin()
    assert seconds(lambda: read_direct(mount / "warm")) < 1.5
    assert read_direct(mount / "warm") == WARM
    waited_s = seconds(lambda: fail_to_read(mount, "cold", CHUNK_BYTES))
    assert DEADLINE_S - 0.2 <= waited_s < DEADLINE_S + 3
    # The list of images stays as it was, and the state tells of the outage.
    wait_until_told(mount)
    assert sorted(os.listdir(mount.mountpoint)) == ["cold", "unopened", "warm"]
    assert "does not answer" in mount.command("status", mount.mountpoint).stdout
    # An image whose manifest is not here opens when the store is back, and not before.
    with pytest.raises(OSError, match=r"\[Errno 5\]"):
        (mount / "unopened").open("rb").close()
    assert read_direct(mount / "warm") == WARM
    metrics = mount.metrics()
    assert metrics["read_errors"] >= 1
    assert metrics["l3_corrupt"] == 0

    outage.end()
    assert read_direct(mount / "cold") == COLD
    assert (mount / "unopened").read_bytes() == noise(5000, 3)
    wait_for(lambda: mount.daemon()["store"]["error"] is None, "the end of the outage")
    assert mount.metrics()["l3_retries"] > 0


def test_only_the_packs_go_away(mount: Mount, store: Store) -> None:
    outage = Outage(store_path(store) / "packs")
    outage.begin()
    assert read_direct(mount / "warm") == WARM
    fail_to_read(mount, "cold", CHUNK_BYTES)
    outage.end()
    assert read_direct(mount / "cold") == COLD


def test_a_lost_pack_is_an_error_and_no_hole(mount: Mount, store: Store) -> None:
    """One object is gone, the store answers: the name is there, its bytes are not."""
    packs = [path for path in (store_path(store) / "packs").rglob("*") if path.is_file()]
    away = [path.rename(path.with_name(f"{path.name}.away")) for path in packs]
    fail_to_read(mount, "cold", CHUNK_BYTES)
    assert read_direct(mount / "warm") == WARM
    for path in away:
        path.rename(path.with_name(path.name.removesuffix(".away")))
    assert read_direct(mount / "cold") == COLD


def test_a_read_waits_for_the_store_until_its_deadline(mounts: Mounts, store: Store) -> None:
    mount = mounts(store.url).start("read_deadline=25")
    read_direct(mount / "cold", 0, CHUNK_BYTES)
    outage = Outage(store_path(store))
    outage.begin()
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(read_direct(mount / "cold")))
    reader.start()
    wait_for(lambda: mount.metrics()["l3_retries"] >= 2, "retries")
    assert mount.metrics()["waiting_reads"] >= 1
    outage.end()
    reader.join(60)
    assert found == [COLD]
    assert mount.metrics()["read_errors"] == 0


def test_the_daemon_dies_during_an_outage(mount: Mount, store: Store) -> None:
    outage = Outage(store_path(store))
    with (mount / "warm").open("rb", buffering=0) as opened:
        outage.begin()
        mount.kill_daemon_and_wait()
        assert sorted(os.listdir(mount.mountpoint)) == ["cold", "unopened", "warm"]
        assert (mount / "warm").stat().st_size == len(WARM)
        assert read_direct(mount / "warm") == WARM
        assert opened.readall() == WARM
        fail_to_read(mount, "cold", CHUNK_BYTES)
    wait_until_told(mount)
    outage.end()
    assert read_direct(mount / "cold") == COLD
    import_bytes(store, COLD[::-1], "new", CHUNK_BYTES)
    wait_for((mount / "new").exists, "a new image")
    assert (mount / "new").read_bytes() == COLD[::-1]


def test_many_readers_in_an_outage_leave_the_mount_responsive(mount: Mount, store: Store) -> None:
    outage = Outage(store_path(store))
    outage.begin()
    failures: list[OSError] = []

    def read(number: int) -> None:
        try:
            read_direct(mount / "cold", (1 + number % 15) * CHUNK_BYTES, CHUNK_BYTES)
        except OSError as error:
            failures.append(error)

    readers = [threading.Thread(target=read, args=(number,)) for number in range(40)]
    for reader in readers:
        reader.start()
    wait_for(lambda: mount.metrics()["waiting_reads"] >= 10, "readers that wait")
    assert seconds(mount.ask_daemon) < 1
    assert seconds(lambda: read_direct(mount / "warm", 0, CHUNK_BYTES)) < 1
    for reader in readers:
        reader.join(60)
    assert [error.errno for error in failures] == [5] * 40
    outage.end()
    assert read_direct(mount / "cold") == COLD


def test_another_store_in_the_place_of_the_mounted_one(
    mount: Mount, store: Store, tmp_path: Path
) -> None:
    """Its images are not ours, whatever their names."""
    (tmp_path / "other").mkdir()
    other = new_store(tmp_path / "other")
    import_bytes(other, COLD[::-1], "cold", CHUNK_BYTES)
    outage = Outage(store_path(store))
    outage.begin()
    store_path(other).rename(store_path(store))
    mount.kill_daemon_and_wait()
    assert read_direct(mount / "warm") == WARM
    fail_to_read(mount, "cold", CHUNK_BYTES)
    assert sorted(os.listdir(mount.mountpoint)) == ["cold", "unopened", "warm"]
    wait_until_told(mount)
    store_path(store).rename(tmp_path / "gone")
    outage.end()
    assert read_direct(mount / "cold") == COLD


def test_a_mount_of_a_store_that_is_away_fails_clearly(mounts: Mounts, store: Store) -> None:
    mount = mounts(store.url)
    Outage(store_path(store)).begin()
    done = mount.try_start()
    assert done.returncode == 4
    assert done.stderr.startswith(f"cachefs: cannot read {store.url}/cachefs.json: No such file")
    assert not mount.is_mounted()
