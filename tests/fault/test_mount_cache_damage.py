"""The local cache is damaged: it heals from the store, and what cannot be trusted is verified."""

import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount.fixtures import Images
from tests.mount.mounts import Mount, Mounts, exists, make_resident, read_direct, wait_for
from tests.stores import flip

pytestmark = pytest.mark.mount

NAME, CHUNK_BYTES = "64k/mixture", 64 * 1024
FLIPPED = 10 * CHUNK_BYTES + 1234
"""An offset of the image whose bit is flipped in L1."""


def place_in_l1(mount: Mount, data: bytes, offset: int) -> tuple[Path, int]:
    """Return the segment file, and where in it, the byte of an image at `offset` lies."""
    segment = mount.cache / "segments" / str(CHUNK_BYTES)
    chunk = data[offset - offset % CHUNK_BYTES :][:CHUNK_BYTES]
    at = segment.read_bytes().find(chunk)
    assert at >= 0
    assert at % CHUNK_BYTES == 0
    return segment, at + offset % CHUNK_BYTES


@pytest.fixture
def data(images: Images) -> bytes:
    found = images.data[NAME]
    chunk = found[FLIPPED - FLIPPED % CHUNK_BYTES :][:CHUNK_BYTES]
    assert any(chunk)
    assert found.count(chunk) == 1
    return found


def filled(mount: Mount, data: bytes, options: str) -> Mount:
    """Start a mount and bring the image into L1, committed."""
    mount.start(options)
    assert read_direct(mount / NAME) == data
    mount.wait_for_commits(NAME)
    return mount


def test_verify_read_never_shows_a_flipped_bit(mounts: Mounts, images: Images, data: bytes) -> None:
    mount = filled(mounts(images.store.url), data, "verify=read,scrub=0")
    flip(*place_in_l1(mount, data, FLIPPED))
    assert read_direct(mount / NAME, FLIPPED - 10, 20) == data[FLIPPED - 10 : FLIPPED + 10]
    assert mount.metrics()["l1_corrupt"] == 1
    assert read_direct(mount / NAME) == data
    assert mount.metrics()["l1_corrupt"] == 1  # it is healed


def test_scrub_finds_and_heals_a_flipped_bit(mounts: Mounts, images: Images, data: bytes) -> None:
    mount = filled(mounts(images.store.url), data, "scrub=0")
    flip(*place_in_l1(mount, data, FLIPPED))
    # The default trusts what was right when it came in; docs/integrity.md says so.
    assert read_direct(mount / NAME, FLIPPED, 1) != data[FLIPPED : FLIPPED + 1]
    found = mount.scrub()
    assert found["dropped_chunks"] == 1
    assert found["verified_chunks"] >= len(data) // CHUNK_BYTES // 2
    assert read_direct(mount / NAME) == data
    assert mount.scrub()["dropped_chunks"] == 0


def test_the_scrub_in_the_background_heals_a_flipped_bit(
    mounts: Mounts, images: Images, data: bytes
) -> None:
    mount = filled(mounts(images.store.url), data, "scrub=0")
    flip(*place_in_l1(mount, data, FLIPPED))
    mount.umount()
    mount.start("scrub=1GiB")
    wait_for(lambda: mount.metrics()["scrub_passes"] > 0, "a pass of the scrub")
    assert mount.metrics()["l1_corrupt"] == 1
    assert read_direct(mount / NAME) == data


def crash(mount: Mount) -> None:
    """End supervisor and daemon at once, as when the machine fails."""
    processes = mount.pids()
    for pid in (mount.supervised()["pid"], mount.daemon_pid()):
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not any(map(exists, processes)), "the end of all processes")


@pytest.mark.parametrize("way", ["daemon, without hits of the lane", "supervisor"])
def test_first_use_after_a_crash_heals_a_flipped_bit(
    mounts: Mounts, images: Images, data: bytes, way: str
) -> None:
    options = "scrub=0,nolane_hits" if way.startswith("daemon") else "scrub=0"
    mount = filled(mounts(images.store.url), data, options)
    flip(*place_in_l1(mount, data, FLIPPED))
    if way.startswith("daemon"):
        mount.kill_daemon_and_wait()
    else:
        crash(mount)
        mount.start("scrub=0")
    assert mount.daemon()["l1"]["suspect"]
    assert read_direct(mount / NAME) == data
    metrics = mount.metrics()
    assert metrics["l1_corrupt"] == 1
    assert metrics["l3_chunks"] == 1  # all the others were right, and did not come again


def test_what_the_lane_knows_to_be_right_stays_so_when_a_daemon_dies(
    mounts: Mounts, images: Images, data: bytes
) -> None:
    """The machine goes on, so no byte that was written is lost: the scrub looks for the rest."""
    mount = filled(mounts(images.store.url), data, "scrub=0")
    make_resident(mount, mount / NAME, data)
    mount.kill_daemon_and_wait()
    flip(*place_in_l1(mount, data, FLIPPED))
    assert read_direct(mount / NAME, FLIPPED, 1) != data[FLIPPED : FLIPPED + 1]
    assert mount.scrub()["dropped_chunks"] == 1
    assert read_direct(mount / NAME) == data
    assert mount.metrics()["l3_chunks"] == 1


def test_many_flipped_bits_in_l1(mounts: Mounts, images: Images, data: bytes) -> None:
    mount = filled(mounts(images.store.url), data, "scrub=0")
    segment = mount.cache / "segments" / str(CHUNK_BYTES)
    choice = random.Random(3)
    used = os.stat(segment).st_size
    with segment.open("r+b") as file:
        for _ in range(300):
            at = choice.randrange(used)
            byte = os.pread(file.fileno(), 1, at)[0]
            os.pwrite(file.fileno(), bytes([byte ^ 1 << choice.randrange(8)]), at)
    crash(mount)
    mount.start("scrub=0")
    assert read_direct(mount / NAME) == data


@pytest.mark.parametrize("size_bytes", [0, CHUNK_BYTES * 3 + 100])
def test_a_segment_that_was_cut(
    mounts: Mounts, images: Images, data: bytes, size_bytes: int
) -> None:
    mount = filled(mounts(images.store.url), data, "scrub=0")
    mount.umount()
    os.truncate(mount.cache / "segments" / str(CHUNK_BYTES), size_bytes)
    mount.start("scrub=0")
    assert read_direct(mount / NAME) == data


def test_a_segment_that_is_cut_while_mounted(mounts: Mounts, images: Images, data: bytes) -> None:
    mount = filled(mounts(images.store.url), data, "verify=read,scrub=0")
    os.truncate(mount.cache / "segments" / str(CHUNK_BYTES), 100_000)
    assert read_direct(mount / NAME) == data


def test_damaged_local_tables_heal(mounts: Mounts, images: Images) -> None:
    mount = mounts(images.store.url).start()
    names = sorted(name for name, data in images.data.items() if name.startswith(("4k", "64k")))
    for name in names:
        assert read_direct(mount / name) == images.data[name]
    mount.umount()
    tables = sorted((mount.cache / "manifests").iterdir())
    assert len(tables) == len(names)
    for number, table in enumerate(tables):
        size = table.stat().st_size
        match number % 3:
            case 0:  # anywhere from the header to the last page
                flip(table, size * number // len(tables), number % 8)
            case 1:
                os.truncate(table, size * number // len(tables))
            case 2:
                table.write_bytes(bytes(size))
    mount.start()
    for name in names:
        assert read_direct(mount / name) == images.data[name], name
    assert mount.metrics()["l3_requests"] == 0  # the chunks are right, only the tables were not
    assert "fetched again" in mount.log()
    mount.umount()
    lines = len(mount.log().splitlines())
    mount.start()
    for name in names:
        assert read_direct(mount / name) == images.data[name], name
    assert "fetched again" not in "\n".join(mount.log().splitlines()[lines:])


def test_a_local_table_that_is_damaged_under_an_open_file(mounts: Mounts, images: Images) -> None:
    mount = mounts(images.store.url).start()
    name = "4k/mixture"
    data = images.data[name]
    with (mount / name).open("rb", buffering=0) as opened:
        assert opened.read(4096) == data[:4096]  # the first page of the table is in memory
        (table,) = (mount.cache / "manifests").iterdir()
        with table.open("r+b") as file:
            file.seek(table.stat().st_size // 2)
            file.write(os.urandom(table.stat().st_size // 2))
        assert opened.seek(0) == 0
        assert opened.readall() == data


def _remove(path: Path) -> None:
    shutil.rmtree(path)


def _garbage(path: Path) -> None:
    size = (path / "data.mdb").stat().st_size
    (path / "data.mdb").write_bytes(os.urandom(size))


def _zeros(path: Path) -> None:
    (path / "data.mdb").write_bytes(bytes((path / "data.mdb").stat().st_size))


def _cut(path: Path) -> None:
    os.truncate(path / "data.mdb", 2 * 4096)


def _empty(path: Path) -> None:
    os.truncate(path / "data.mdb", 0)


def _a_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("not a folder")


def _flipped_magic(path: Path) -> None:
    for page in (0, 4096):
        flip(path / "data.mdb", page + 16, 0)


@pytest.mark.parametrize(
    "damage", [_remove, _garbage, _zeros, _cut, _empty, _a_file, _flipped_magic]
)
def test_a_damaged_index_costs_warmth_only(
    mounts: Mounts, images: Images, data: bytes, damage: Callable[[Path], None]
) -> None:
    mount = filled(mounts(images.store.url), data, "scrub=0")
    mount.umount()
    damage(mount.cache / "index.lmdb")
    mount.start("scrub=0")
    assert read_direct(mount / NAME) == data
    assert mount.metrics()["l3_requests"] > 0
    mount.umount()
    mount.start("scrub=0")
    assert read_direct(mount / NAME) == data
    assert mount.metrics()["l3_requests"] == 0  # and it is a good index from now on


def test_an_older_index_with_newer_segments(mounts: Mounts, images: Images) -> None:
    """As after a power failure that lost commits: slots hold other chunks than the index says."""
    mount = mounts(images.store.url).start("quota=4MiB,scrub=0")
    data, half = images.data["pattern"], 2 << 20
    assert read_direct(mount / "pattern", 0, half) == data[:half]
    mount.wait_for_commits("pattern")
    older = (mount.cache / "index.lmdb" / "data.mdb").read_bytes()
    assert read_direct(mount / "pattern") == data  # slots are given to others
    crash(mount)
    (mount.cache / "index.lmdb" / "data.mdb").write_bytes(older)
    mount.start("quota=4MiB,scrub=0")
    assert read_direct(mount / "pattern") == data
    assert mount.metrics()["l1_corrupt"] > 0  # it did believe the old index, and checked
