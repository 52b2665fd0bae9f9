"""L1 keeps to its quota and to its disk, memory keeps to its bound, and bytes stay right."""

import os
import random
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import pytest

from tests.mount.fio import Fio
from tests.mount.fixtures import Images
from tests.mount.mounts import Mount, Mounts, read_direct, wait_for
from tests.mount.samples import CHUNKS, KIB, MIB, noise
from tests.stores import import_file, new_store

pytestmark = pytest.mark.mount

READERS = 8


def read_at_random(mount: Mount, images: Images, name: str, count: int) -> None:
    """Read with 8 readers at random places, past the page cache, and compare every byte."""
    data = images.data[name]

    def read(number: int) -> list[int]:
        choice = random.Random(number)
        wrong: list[int] = []
        fd = os.open(mount / name, os.O_RDONLY | os.O_DIRECT)
        try:
            for _ in range(count):
                at, size = choice.randrange(len(data)), choice.choice([4096, 20000, 200000])
                if os.pread(fd, size, at) != data[at : at + size]:
                    wrong.append(at)
        finally:
            os.close(fd)
        return wrong

    with ThreadPoolExecutor(READERS) as pool:
        assert list(pool.map(read, range(READERS))) == [[]] * READERS


class Watch:
    """Looks again and again at the figures of a mount while a test goes on."""

    def __init__(self, mount: Mount, free_of: Path | None = None) -> None:
        self.allocated_bytes: list[int] = []
        self.free_bytes: list[int] = []
        self._mount = mount
        self._free_of = free_of
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(0.05):
            self.allocated_bytes.append(self._mount.daemon()["l1"]["allocated_bytes"])
            if self._free_of:
                found = os.statvfs(self._free_of)
                self.free_bytes.append(found.f_bavail * found.f_frsize)


@pytest.mark.parametrize("quota_bytes", [MIB, 3 * MIB, 8 * MIB])
def test_a_quota_far_smaller_than_what_is_read(
    mounts: Mounts, images: Images, quota_bytes: int
) -> None:
    mount = mounts(images.store.url).start(f"quota={quota_bytes}")
    with Watch(mount) as watch:
        read_at_random(mount, images, "pattern", 60)
    assert max(watch.allocated_bytes) <= quota_bytes
    status = mount.daemon()
    assert 0 < status["l1"]["resident_bytes"] <= status["l1"]["allocated_bytes"] <= quota_bytes
    assert status["metrics"]["evicted_chunks"] > 0
    assert disk_bytes(mount) <= quota_bytes


def disk_bytes(mount: Mount) -> int:
    """What the segments take, less what the file system may need for their block lists."""
    paths = list((mount.cache / "segments").iterdir())
    return sum(path.stat().st_blocks * 512 - 64 * KIB for path in paths)


def test_chunk_sizes_share_a_small_quota(mounts: Mounts, images: Images) -> None:
    """Classes of slots take room from each other, and nobody starves or reads another's bytes."""
    mount = mounts(images.store.url).start("quota=4MiB")
    names = [f"{chunk_bytes // KIB}k/mixture" for chunk_bytes in CHUNKS]
    with Watch(mount) as watch, ThreadPoolExecutor(len(names)) as pool:
        for done in [pool.submit(read_at_random, mount, images, name, 12) for name in names]:
            done.result()
    for name in names:
        assert read_direct(mount / name) == images.data[name]
    assert max(watch.allocated_bytes) <= 4 * MIB


@pytest.mark.parametrize("engine", ["libaio", "io_uring"])
def test_fio_finds_every_block_right_in_a_small_quota(
    mounts: Mounts, images: Images, engine: str
) -> None:
    mount = mounts(images.store.url).start("quota=2MiB,fetchers=2")
    fio = Fio(mount / "pattern", engine, 32, "--io_size=24m", "--numjobs=2", "--thread")
    try:
        assert fio.result() == 2 * 1536
    finally:
        fio.end()
    assert mount.metrics()["evicted_chunks"] > 0


def test_a_smaller_quota_at_the_next_mount(mounts: Mounts, images: Images) -> None:
    mount = mounts(images.store.url).start("quota=32MiB")
    read_direct(mount / "pattern")
    assert mount.daemon()["l1"]["allocated_bytes"] > 8 * MIB
    mount.umount()
    mount.start("quota=8MiB")
    wait_for(lambda: mount.daemon()["l1"]["allocated_bytes"] <= 8 * MIB, "L1 to shrink")
    assert read_direct(mount / "pattern") == images.data["pattern"]
    assert disk_bytes(mount) <= 8 * MIB


@pytest.fixture
def small_disk(short_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB: less than what is read."""
    folder = short_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "cachefs-test", str(folder)]
    if subprocess.run(mount, check=False, timeout=60).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True, timeout=60)


def test_the_free_floor_of_a_small_disk_is_kept(
    small_disk: Path, mounts: Mounts, images: Images
) -> None:
    mount = mounts(images.store.url)
    mount.cache = small_disk / "cache"
    mount.start("quota=64MiB,free_floor=8MiB")
    with Watch(mount, small_disk) as watch:
        read_at_random(mount, images, "pattern", 40)
    assert mount.daemon()["l1"]["resident_bytes"] > 4 * MIB
    # The index and the tables may take a little of the floor before L1 gives it back.
    assert min(watch.free_bytes) >= 7 * MIB
    assert read_direct(mount / "pattern") == images.data["pattern"]


def test_a_full_disk_fails_no_read(small_disk: Path, mounts: Mounts, images: Images) -> None:
    mount = mounts(images.store.url)
    mount.cache = small_disk / "cache"
    mount.start("quota=64MiB")  # and no floor: the disk itself says no
    read_at_random(mount, images, "pattern", 20)
    with (small_disk / "others").open("wb") as others:
        others.write(bytes(os.statvfs(small_disk).f_bavail * 4096 - 8192))
    read_at_random(mount, images, "64k/mixture", 20)  # chunks and a table that have no place
    assert read_direct(mount / "pattern") == images.data["pattern"]
    (small_disk / "others").unlink()
    mount.kill_daemon_and_wait()
    assert read_direct(mount / "pattern") == images.data["pattern"]


def test_the_floor_is_given_back_when_others_need_the_disk(
    small_disk: Path, mounts: Mounts, images: Images
) -> None:
    mount = mounts(images.store.url)
    mount.cache = small_disk / "cache"
    mount.start("quota=16MiB,free_floor=4MiB")
    read_direct(mount / "pattern")
    before = mount.daemon()["l1"]["allocated_bytes"]
    assert before > 10 * MIB
    with (small_disk / "others").open("wb") as others:
        others.write(noise(6 * MIB))
        os.fsync(others.fileno())

    def is_free() -> bool:
        found = os.statvfs(small_disk)
        return found.f_bavail * found.f_frsize >= 4 * MIB - 64 * KIB

    wait_for(is_free, "L1 to give way")
    assert mount.daemon()["l1"]["allocated_bytes"] < before
    assert read_direct(mount / "pattern") == images.data["pattern"]


IMAGES, IMAGE_BYTES, ISLANDS, ISLAND_BYTES = 20, 20 << 30, 24, 128 * KIB
MEMORY_LIMIT_BYTES = 150 * 1000 * 1000


def test_memory_with_20_images_of_20_gib(mounts: Mounts, tmp_path: Path) -> None:
    store = new_store(tmp_path)
    places: dict[str, dict[int, bytes]] = {}
    source = tmp_path / "source"
    for number in range(IMAGES):
        choice = random.Random(number)
        starts = sorted(choice.sample(range(0, IMAGE_BYTES - ISLAND_BYTES, 65536), ISLANDS))
        islands = {start: choice.randbytes(ISLAND_BYTES) for start in starts}
        with source.open("wb") as file:
            file.truncate(IMAGE_BYTES)
            for start, island in islands.items():
                os.pwrite(file.fileno(), island, start)
        import_file(store, source, f"guest-{number}", 65536)
        places[f"guest-{number}"] = islands
    source.unlink()
    mount = mounts(store.url).start("quota=1GiB")
    files = {name: (mount / name).open("rb", buffering=0) for name in places}
    try:
        choice = random.Random(1)
        for name, islands in places.items():
            fd = files[name].fileno()
            for start in islands:
                assert os.pread(fd, 4096, start + 8192) == _bytes_at(islands, start + 8192)
            for _ in range(40):
                at = choice.randrange(IMAGE_BYTES)
                assert os.pread(fd, 4096, at) == _bytes_at(islands, at), (name, at)
        status = mount.status()["daemon"]
    finally:
        for opened in files.values():
            opened.close()
    memory = Path(f"/proc/{status['pid']}/status").read_text(encoding="ascii")
    peak_kb = next(int(line.split()[1]) for line in memory.splitlines() if "VmHWM" in line)
    assert peak_kb * 1024 < MEMORY_LIMIT_BYTES
    assert status["max_rss_bytes"] < MEMORY_LIMIT_BYTES
    assert status["metrics"]["l3_chunks"] >= IMAGES * ISLANDS  # it did hold something


def _bytes_at(islands: dict[int, bytes], at: int, size_bytes: int = 4096) -> bytes:
    """What the image holds there: a part of an island, or zeros."""
    found = bytearray(size_bytes)
    for start, island in islands.items():
        first, last = max(start, at), min(start + len(island), at + size_bytes)
        if first < last:
            found[first - at : last - at] = island[first - start : last - start]
    return bytes(found)
