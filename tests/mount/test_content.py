"""Every byte of every image comes out as it went in, whatever way it is read."""

import errno
import itertools
import mmap
import os
import random
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.mount.fio import Fio
from tests.mount.fixtures import Images
from tests.mount.mounts import Mount, Mounts, read_direct
from tests.mount.samples import CHUNKS, KIB, MIB

pytestmark = pytest.mark.mount

FOLDERS = [f"{chunk_bytes // KIB}k" for chunk_bytes in CHUNKS]


@pytest.fixture(params=FOLDERS)
def folder(request: pytest.FixtureRequest) -> str:
    """The images of one chunk size."""
    return str(request.param)


def of_folder(images: Images, folder: str) -> dict[str, bytes]:
    return {name: data for name, data in images.data.items() if name.startswith(f"{folder}/")}


def test_whole_files_are_equal(mounted: Mount, images: Images, folder: str) -> None:
    for name, data in of_folder(images, folder).items():
        assert (mounted / name).read_bytes() == data, name
        assert (mounted / name).stat().st_size == len(data), name


def test_whole_files_are_equal_past_the_page_cache(
    mounted: Mount, images: Images, folder: str
) -> None:
    for name, data in of_folder(images, folder).items():
        assert read_direct(mounted / name) == data, name


def test_random_reads_of_odd_places_and_lengths(
    mounted: Mount, images: Images, folder: str
) -> None:
    choice = random.Random(folder)
    data = images.data[f"{folder}/mixture"]
    for flags in (os.O_RDONLY, os.O_RDONLY | os.O_DIRECT):
        fd = os.open(mounted / f"{folder}/mixture", flags)
        try:
            for _ in range(200):
                at, size = choice.randrange(len(data)), choice.choice([1, 511, 4096, 70000, 300000])
                assert os.pread(fd, size, at) == data[at : at + size], (at, size)
        finally:
            os.close(fd)


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDONLY | os.O_DIRECT])
def test_reads_beyond_the_end_are_empty(
    mounted: Mount, images: Images, folder: str, flags: int
) -> None:
    for name, data in of_folder(images, folder).items():
        fd = os.open(mounted / name, flags)
        try:
            end = len(data)
            assert os.pread(fd, 8192, max(0, end - 100)) == data[max(0, end - 100) :], name
            for at in (end, end + 1, end + MIB, end + 2**40):
                assert os.pread(fd, 8192, at) == b"", (name, at)
        finally:
            os.close(fd)


@pytest.mark.parametrize("name", ["mixture", "sparse", "over", "byte"])
def test_private_maps_show_the_image_and_keep_writes_to_themselves(
    mounted: Mount, images: Images, folder: str, name: str
) -> None:
    path, data = mounted / f"{folder}/{name}", images.data[f"{folder}/{name}"]
    for flags in (os.O_RDONLY, os.O_RDWR):
        fd = os.open(path, flags)
        try:
            protection = mmap.PROT_READ | mmap.PROT_WRITE
            with mmap.mmap(fd, 0, flags=mmap.MAP_PRIVATE, prot=protection) as mapped:
                assert mapped[:] == data
                mapped[len(data) // 2] ^= 0xFF
                assert mapped[:] != data
        finally:
            os.close(fd)
        assert path.read_bytes() == data


def test_shared_maps_show_the_image(mounted: Mount, images: Images, folder: str) -> None:
    with (
        (mounted / f"{folder}/mixture").open("rb") as file,
        mmap.mmap(file.fileno(), 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ) as mapped,
    ):
        assert mapped[:] == images.data[f"{folder}/mixture"]


@pytest.mark.parametrize("engine", ["libaio", "io_uring", "psync", "mmap"])
def test_fio_finds_every_block_right(mounted: Mount, engine: str) -> None:
    options = ["--io_size=8m"] if engine != "mmap" else ["--io_size=8m", "--direct=0"]
    fio = Fio(mounted / "pattern", engine, 32, *options)
    try:
        assert fio.result() == 512
    finally:
        fio.end()


def test_64_readers_at_once(mounts: Mounts, images: Images) -> None:
    """From nothing in L1, so that most of them wait for the same chunks."""
    mount = mounts(images.store.url).start()
    names = [f"{folder}/mixture" for folder in FOLDERS]
    begin = threading.Barrier(64)

    def read(number: int) -> int:
        choice = random.Random(number)
        data = images.data[names[number % 3]]
        fd = os.open(mount / names[number % 3], os.O_RDONLY | os.O_DIRECT * (number % 2))
        wrong = 0
        try:
            begin.wait(30)
            for _ in range(24):
                at = choice.randrange(len(data))
                size = choice.choice([4096, 65536, 200000])
                wrong += os.pread(fd, size, at) != data[at : at + size]
        finally:
            os.close(fd)
        return wrong

    with ThreadPoolExecutor(64) as pool:
        assert sum(pool.map(read, range(64))) == 0

    metrics = mount.metrics()
    assert metrics["joined_chunks"] > 0  # they did wait for each other's fetches
    # Each chunk came once, whoever asked for it, but for those that L1 had no slot for yet.
    distinct = {
        data[at : at + chunk_bytes]
        for chunk_bytes, name in zip(CHUNKS, names, strict=True)
        for data in [images.data[name]]
        for at in range(0, len(data), chunk_bytes)
    }
    assert metrics["l3_chunks"] - metrics["unkept_chunks"] <= len(distinct)


def test_sendfile_and_splice(mounted: Mount, images: Images, tmp_path: Path) -> None:
    """Pages go from the mount's page cache to elsewhere without a copy."""
    data = images.data["64k/mixture"]
    target = tmp_path / "copy"
    read_end, write_end = os.pipe()
    with (mounted / "64k/mixture").open("rb") as source, target.open("wb") as file:
        at = 0
        while count := os.sendfile(file.fileno(), source.fileno(), at, 1 << 20):
            at += count
        assert target.read_bytes() == data
        spliced = b""
        while count := os.splice(source.fileno(), write_end, 32768, len(spliced)):
            spliced += os.read(read_end, count)
    os.close(read_end)
    os.close(write_end)
    assert spliced == data


def test_copy_file_range_copies_right_or_not_at_all(
    mounted: Mount, images: Images, tmp_path: Path
) -> None:
    data = images.data["64k/mixture"]
    target = tmp_path / "copy"
    with (mounted / "64k/mixture").open("rb") as source, target.open("wb") as file:
        try:
            while os.copy_file_range(source.fileno(), file.fileno(), 1 << 20):
                pass
        except OSError as error:  # the kernel's: not between two kinds of file systems
            if error.errno != errno.EXDEV:
                raise
            return
    assert target.read_bytes() == data


def test_common_tools_copy_right(mounted: Mount, images: Images, tmp_path: Path) -> None:
    for name in ("64k/mixture", "64k/sparse"):
        copy = tmp_path / "copy"
        subprocess.run(["cp", "--sparse=always", mounted / name, copy], check=True, timeout=60)
        assert copy.read_bytes() == images.data[name]
        subprocess.run(["cmp", copy, mounted / name], check=True, timeout=60)


def test_st_blocks_says_what_the_image_holds(mounted: Mount, images: Images, folder: str) -> None:
    chunk_bytes = int(folder.removesuffix("k")) * KIB
    for name, data in of_folder(images, folder).items():
        chunks = [data[at : at + chunk_bytes] for at in range(0, len(data), chunk_bytes)]
        held = sum(len(chunk) for chunk in chunks if any(chunk))
        assert (mounted / name).stat().st_blocks == -(-held // 512), name
    assert (mounted / f"{folder}/zero").stat().st_blocks == 0


def test_attributes_say_read_only_files_of_root(mounted: Mount) -> None:
    status = (mounted / "64k/mixture").stat()
    assert (status.st_mode, status.st_uid, status.st_nlink) == (0o100444, 0, 1)
    assert (mounted / "64k").stat().st_mode == 0o040555
    assert status.st_mtime_ns > 0
    assert len({(mounted / name).stat().st_ino for name in ("4k", "4k/zero", "64k/zero")}) == 3


def test_extended_attributes(mounted: Mount, images: Images) -> None:
    path = mounted / "64k/mixture"
    data = path.read_bytes()
    told = subprocess.run(
        ["getfattr", "--absolute-names", "-d", path],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout
    values = dict(line.split("=") for line in told.splitlines() if "=" in line)
    assert set(values) == {
        f"user.cachefs.{name}"
        for name in ("version", "resident_bytes", "stored_bytes", "chunk_size", "pattern")
    }
    assert values["user.cachefs.version"] == '"1"'
    assert values["user.cachefs.chunk_size"] == '"65536"'
    assert 0 < int(values["user.cachefs.stored_bytes"].strip('"')) < len(data)
    chunks = {data[at : at + 65536] for at in range(0, len(data), 65536)}
    resident = sum(len(chunk) for chunk in chunks if any(chunk))
    mounted.check_idle()
    assert _waited_xattr(path, "user.cachefs.resident_bytes", resident) == resident
    assert os.listxattr(mounted / "64k") == []
    with pytest.raises(OSError, match="No data available"):
        os.getxattr(path, "user.cachefs.nothing")


def _waited_xattr(path: Path, name: str, expected: int) -> int:
    """What was read a moment ago counts when the index is written, a moment later."""
    value = -1
    for _ in range(1000):
        value = int(os.getxattr(path, name))
        if value == expected:
            break
    return value


def test_resident_bytes_of_an_untouched_image_is_0(mounts: Mounts, images: Images) -> None:
    mount = mounts(images.store.url).start("noprefetch")  # others have left a profile
    path = mount / "pattern"
    assert os.getxattr(path, "user.cachefs.resident_bytes") == b"0"
    read_direct(path, 0, 65536)
    assert _waited_xattr(path, "user.cachefs.resident_bytes", 65536) == 65536


def test_folders_list_their_images(mounted: Mount, images: Images) -> None:
    assert sorted(os.listdir(mounted.mountpoint)) == sorted([*FOLDERS, "pattern"])
    found = {
        str(Path(folder, name).relative_to(mounted.mountpoint))
        for folder, _, names in os.walk(mounted.mountpoint)
        for name in names
    }
    assert found == set(images.data)
    kinds = {entry.name: entry.is_dir() for entry in os.scandir(mounted.mountpoint)}
    assert kinds == {**dict.fromkeys(FOLDERS, True), "pattern": False}


def test_statfs_tells_the_size_of_all_images(mounted: Mount, images: Images) -> None:
    found = os.statvfs(mounted.mountpoint)
    total = sum(len(data) for data in images.data.values())
    assert 0 <= found.f_blocks * found.f_frsize - total < found.f_frsize
    assert (found.f_bfree, found.f_bavail, found.f_namemax) == (0, 0, 255)
    assert found.f_files > len(images.data)


def test_missing_names_and_wrong_kinds(mounted: Mount) -> None:
    for name, error in (
        ("nothing", FileNotFoundError),
        ("64k/nothing", FileNotFoundError),
        ("64k/mixture/below", NotADirectoryError),
        ("64k", IsADirectoryError),
    ):
        with pytest.raises(error):
            (mounted / name).read_bytes()


def test_names_are_found_in_a_folder_by_every_way(mounted: Mount) -> None:
    ways = ["64k/../4k/byte", "./4k/./byte", "4k//byte"]
    inodes = {(mounted / way).stat().st_ino for way in ways}
    assert len(inodes) == 1
    for first, second in itertools.pairwise([*ways, ways[0]]):
        assert os.path.samefile(mounted / first, mounted / second)
