"""on_outage = "hold": whoever reads waits for the store, and for nothing else."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cachefs.store.store import Store
from mount_helper import control
from tests.fault.test_mount_outage import Outage, fail_to_read, seconds
from tests.mount.fio import Fio, write_pattern
from tests.mount.mounts import CACHEFS, Mount, Mounts, exists, read_direct, wait_for
from tests.mount.reading import Reading, digest_of
from tests.mount.samples import KIB, MIB, mixture, noise, store_path
from tests.stores import import_bytes, import_file, new_store, pack_paths

pytestmark = pytest.mark.mount

DEADLINE_S = 1.0
CHUNK_BYTES = 64 * KIB
WARM, HELD, FAILING = mixture(1024 * KIB, 1), noise(2048 * KIB, 2), noise(512 * KIB, 3)
HOLD, FAIL = {"on_outage": "hold"}, {"on_outage": "fail"}
AT, SIZE_BYTES = 4 * CHUNK_BYTES, 2 * CHUNK_BYTES
WANTED = digest_of(HELD[AT : AT + SIZE_BYTES])

MakeReading = Callable[..., Reading]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = new_store(tmp_path)
    import_bytes(store, WARM, "warm", CHUNK_BYTES, FAIL)
    import_bytes(store, HELD, "held", CHUNK_BYTES, HOLD)
    import_bytes(store, FAILING, "failing", CHUNK_BYTES)
    import_bytes(store, noise(5000, 4), "unopened", CHUNK_BYTES, HOLD)
    return store


@pytest.fixture
def mount(mounts: Mounts, store: Store) -> Mount:
    """One image in L1, of two others one chunk, one that was never opened."""
    mount = mounts(store.url).start(f"read_deadline={DEADLINE_S},refresh=0.3")
    assert read_direct(mount / "warm") == WARM
    for name in ("held", "failing"):
        read_direct(mount / name, 0, CHUNK_BYTES)
    mount.wait_for_commits("warm", "held", "failing")
    return mount


@pytest.fixture
def outage(store: Store) -> Iterator[Outage]:
    """Not begun; over when the test ends."""
    outage = Outage(store_path(store))
    yield outage
    if not store_path(store).exists():
        outage.end()


@pytest.fixture
def reading(mount: Mount, outage: Outage) -> Iterator[MakeReading]:
    """Makes readers of the image that holds; they end before the mount does."""
    made: list[Reading] = []

    def make(at: int = AT, size_bytes: int = SIZE_BYTES, *, buffered: bool = False) -> Reading:
        made.append(Reading(mount / "held", at, size_bytes, buffered=buffered))
        return made[-1]

    yield make
    for reading in made:
        reading.end()


def held(mount: Mount) -> int:
    """How many requests the lane keeps for as long as it takes."""
    count: int = mount.supervised()["lane"]["held"]
    return count


def wait_until_held(mount: Mount, count: int = 1) -> None:
    try:
        wait_for(lambda: held(mount) >= count, f"{count} reads that are held")
    except AssertionError as error:
        raise AssertionError(f"{error}: {mount.supervised()}\n{mount.log()}") from None


def test_reads_wait_for_the_store_and_other_images_do_not_notice(
    mount: Mount, outage: Outage, reading: MakeReading
) -> None:
    outage.begin()
    readers = [reading(), reading(), reading(buffered=True)]
    wait_until_held(mount, 3)
    time.sleep(3 * DEADLINE_S)
    assert all(reader.is_under_way() for reader in readers)
    assert seconds(lambda: read_direct(mount / "warm")) < 1
    assert seconds(lambda: fail_to_read(mount, "failing", CHUNK_BYTES)) < DEADLINE_S + 2
    metrics = mount.metrics()
    assert metrics["held_reads"] >= 6
    assert metrics["read_errors"] == 1  # of the image that fails
    assert "image 'held'" in mount.log()
    assert "requests wait for the store" in mount.command("status", mount.mountpoint).stdout

    ended_s = time.monotonic()
    outage.end()
    assert [reader.digest() for reader in readers] == [WANTED] * 3
    assert time.monotonic() - ended_s < 4
    wait_for(lambda: held(mount) == 0, "no read that is held")
    assert read_direct(mount / "held") == HELD


def test_a_killed_reader_is_gone_at_once(
    mount: Mount, outage: Outage, reading: MakeReading
) -> None:
    outage.begin()
    direct, buffered = reading(), reading(AT + SIZE_BYTES, buffered=True)
    wait_until_held(mount, 2)
    direct.kill()
    buffered.kill()
    assert mount.supervised()["lane"]["answered_killed"] >= 1  # the kernel sees to the other
    outage.end()
    wait_for(lambda: held(mount) == 0, "no read that is held")
    assert read_direct(mount / "held") == HELD


def test_daemons_die_while_a_read_is_held(
    mount: Mount, outage: Outage, reading: MakeReading
) -> None:
    outage.begin()
    readers = [reading(), reading(buffered=True)]
    for _ in range(3):
        wait_until_held(mount, 2)
        mount.kill_daemon_and_wait()
    # Before it has been held at all, and in order.
    late = reading(AT + SIZE_BYTES)
    wait_for(lambda: mount.metrics()["waiting_reads"] >= 3, "a read that waits")
    mount.kill_daemon_and_wait()
    time.sleep(2 * DEADLINE_S)
    assert [reader.is_under_way() for reader in [*readers, late]] == [True] * 3
    assert control.ask(mount.run_folder, {"command": "restart-daemon"})["ok"]
    wait_for(lambda: mount.supervised()["daemon"]["restarts"] >= 5, "a daemon after an upgrade")
    outage.end()
    assert [reader.digest() for reader in readers] == [WANTED] * 2
    assert late.digest() == digest_of(HELD[AT + SIZE_BYTES :][:SIZE_BYTES])


def test_an_unmount_while_a_read_is_held(
    mount: Mount, outage: Outage, reading: MakeReading
) -> None:
    outage.begin()
    reader, pids = reading(), mount.pids()
    wait_until_held(mount)
    refused = mount.command("umount", mount.mountpoint)
    assert (refused.returncode, "in use" in refused.stderr) == (8, True), refused.stderr
    assert reader.is_under_way()
    mount.umount("--lazy")
    assert not mount.is_mounted()
    assert reader.is_under_way()
    reader.kill()
    wait_for(lambda: not any(map(exists, pids)), "the end of all processes")


def test_a_lazily_unmounted_reader_gets_its_bytes(
    mount: Mount, outage: Outage, reading: MakeReading
) -> None:
    outage.begin()
    reader, pids = reading(), mount.pids()
    wait_until_held(mount)
    mount.umount("--lazy")
    outage.end()
    assert reader.digest() == WANTED
    wait_for(lambda: not any(map(exists, pids)), "the end of all processes")


def test_an_image_opens_when_the_store_is_back(mount: Mount, outage: Outage) -> None:
    outage.begin()
    reader = Reading(mount / "unopened", 0, 5000, buffered=True)
    try:
        wait_until_held(mount)
        time.sleep(2 * DEADLINE_S)
        assert reader.is_under_way()
        outage.end()
        assert reader.digest() == digest_of(noise(5000, 4))
    finally:
        reader.end()


def test_a_killed_process_that_opens_is_gone_at_once(mount: Mount, outage: Outage) -> None:
    outage.begin()
    reader = Reading(mount / "unopened", 0, 5000)
    try:
        wait_until_held(mount)
        reader.kill()
        wait_for(lambda: held(mount) == 0, "no request that is held")
    finally:
        reader.end()


def test_without_hits_of_the_lane_it_is_the_same(mounts: Mounts, store: Store) -> None:
    mount = mounts(store.url).start(f"read_deadline={DEADLINE_S},nolane_hits")
    read_direct(mount / "held", 0, CHUNK_BYTES)
    outage = Outage(store_path(store))
    outage.begin()
    reader = Reading(mount / "held", AT, SIZE_BYTES)
    try:
        wait_until_held(mount)
        mount.kill_daemon_and_wait()
        time.sleep(DEADLINE_S)
        assert reader.is_under_way()
        outage.end()
        assert reader.digest() == WANTED
    finally:
        reader.end()


def test_what_is_no_outage_fails_all_the_same(mount: Mount, store: Store) -> None:
    """A pack that the store does not have: nobody waits for it."""
    away = [path.rename(path.with_name(f"{path.name}.away")) for path in pack_paths(store)]
    assert seconds(lambda: fail_to_read(mount, "held", AT)) < DEADLINE_S
    assert held(mount) == 0
    for path in away:
        path.rename(path.with_name(path.name.removesuffix(".away")))
    assert read_direct(mount / "held") == HELD


def test_the_mount_option_is_for_images_without_a_label(mounts: Mounts, store: Store) -> None:
    mount = mounts(store.url).start(f"read_deadline={DEADLINE_S},on_outage=hold")
    for name in ("warm", "failing"):
        read_direct(mount / name, 0, CHUNK_BYTES)
    outage = Outage(store_path(store))
    outage.begin()
    reader = Reading(mount / "failing", CHUNK_BYTES, CHUNK_BYTES)
    try:
        wait_until_held(mount)
        fail_to_read(mount, "warm", CHUNK_BYTES)
        outage.end()
        assert reader.digest() == digest_of(FAILING[CHUNK_BYTES : 2 * CHUNK_BYTES])
    finally:
        reader.end()


def test_a_deep_queue_of_held_reads_leaves_room_for_others(
    mounts: Mounts, store: Store, tmp_path: Path
) -> None:
    """More of them than the kernel would let one mount have under way at once by itself."""
    pattern = write_pattern(tmp_path / "pattern", 32 * MIB)
    import_file(store, pattern, "pattern", CHUNK_BYTES)
    options = f"read_deadline={DEADLINE_S},on_outage=hold"
    mount = mounts(store.url).start(options)
    assert read_direct(mount / "warm") == WARM
    with (mount / "pattern").open("rb"):
        pass
    outage = Outage(store_path(store))
    outage.begin()
    load = Fio(mount / "pattern", "libaio", 512, "--iodepth_batch_submit=512")
    try:
        wait_until_held(mount, 400)
        assert seconds(lambda: read_direct(mount / "warm")) < 1
        assert seconds(lambda: Fio(mount / "warm", "libaio", 8, "--verify=0").result()) < 5
        assert mount.metrics()["waiting_reads"] < 2100
        ended_s = time.monotonic()
        outage.end()
        assert load.result() == 32 * MIB // (16 * KIB)
        assert time.monotonic() - ended_s < 15
    finally:
        load.end()
    assert mount.metrics()["l3_chunks"] <= (32 * MIB + len(WARM)) // CHUNK_BYTES


@pytest.mark.parametrize("numjobs", [1, 4])
def test_a_killed_user_of_libaio_is_gone(mounts: Mounts, store: Store, numjobs: int) -> None:
    """Its last thread waits for the requests of all of them in the middle of its exit."""
    mount = mounts(store.url).start(f"read_deadline={DEADLINE_S},on_outage=hold")
    read_direct(mount / "held", 0, CHUNK_BYTES)
    outage = Outage(store_path(store))
    outage.begin()
    load = Fio(mount / "held", "libaio", 32, "--verify=0", "--thread", f"--numjobs={numjobs}")
    try:
        wait_until_held(mount, 16)
        os.kill(load.process.pid, signal.SIGKILL)
        wait_for(lambda: not exists(load.process.pid), "the end of a killed process")
        wait_for(lambda: held(mount) == 0, "no read that is held")
    finally:
        outage.end()
        load.end()


def test_a_label_that_cannot_be_is_refused(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"data")
    done = subprocess.run(
        [CACHEFS, "import", "--store", tmp_path / "s", "--label", "on_outage=wait", image, "name"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        2,
        "cachefs: label on_outage=wait: it can be fail or hold",
    )
