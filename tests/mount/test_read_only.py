"""Nothing on the mount can be changed, and a try leaves no trace."""

import errno
import mmap
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount.fixtures import Images
from tests.mount.mounts import Mount, read_direct

pytestmark = pytest.mark.mount

NAME = "64k/mixture"
CHANGES: dict[str, Callable[[Path], object]] = {
    "create": lambda root: (root / "new").touch(),
    "create in a folder": lambda root: (root / "64k/new").touch(),
    "mkdir": lambda root: (root / "new").mkdir(),
    "mknod": lambda root: os.mknod(root / "new", stat.S_IFIFO | 0o600),
    "symlink": lambda root: (root / "new").symlink_to("64k"),
    "link": lambda root: (root / "new").hardlink_to(root / NAME),
    "unlink": lambda root: (root / NAME).unlink(),
    "rmdir": lambda root: (root / "64k").rmdir(),
    "rename": lambda root: (root / NAME).rename(root / "new"),
    "rename over": lambda root: (root / NAME).rename(root / "64k/byte"),
    "rename a folder": lambda root: (root / "64k").rename(root / "new"),
    "truncate": lambda root: os.truncate(root / NAME, 0),
    "extend": lambda root: os.truncate(root / NAME, 1 << 30),
    "open to truncate": lambda root: os.open(root / NAME, os.O_RDWR | os.O_TRUNC),
    "chmod": lambda root: (root / NAME).chmod(0o777),
    "chmod of a folder": lambda root: (root / "64k").chmod(0o777),
    "chown": lambda root: os.chown(root / NAME, 1, 1),
    "utime": lambda root: os.utime(root / NAME),
    "utime to a time": lambda root: os.utime(root / NAME, (1, 1)),
    "setxattr": lambda root: os.setxattr(root / NAME, "user.mine", b"1"),
    "setxattr of ours": lambda root: os.setxattr(root / NAME, "user.cachefs.version", b"1"),
    "removexattr": lambda root: os.removexattr(root / NAME, "user.cachefs.version"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_refused(mounted: Mount, change: str) -> None:
    before = (mounted / NAME).stat()
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is looked at
        CHANGES[change](mounted.mountpoint)
    assert caught.value.errno == errno.EROFS
    after = (mounted / NAME).stat()
    assert after == before
    assert not (mounted / "new").exists()


@pytest.mark.parametrize("extra", [0, os.O_DIRECT, os.O_APPEND], ids=["plain", "direct", "append"])
def test_an_open_for_writing_succeeds_and_its_writes_do_not(
    mounted: Mount, images: Images, extra: int
) -> None:
    data = images.data[NAME]
    path = mounted / NAME
    fd = os.open(path, os.O_RDWR | extra)
    try:
        for size, at in ((4096, 0), (1, 8191), (10000, 4096 * 5), (4096, len(data))):
            with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is looked at
                os.pwrite(fd, b"x" * size, at)
            assert caught.value.errno == errno.EROFS
        with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is looked at
            os.ftruncate(fd, 1)
        assert caught.value.errno == errno.EROFS
        os.fsync(fd)
    finally:
        os.close(fd)
    assert path.read_bytes() == data  # no page of the page cache keeps what was written
    assert read_direct(path) == data
    assert path.stat().st_size == len(data)


def test_an_open_only_for_writing_changes_nothing(mounted: Mount, images: Images) -> None:
    fd = os.open(mounted / NAME, os.O_WRONLY)
    try:
        with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is looked at
            os.write(fd, b"x")
        assert caught.value.errno == errno.EROFS
    finally:
        os.close(fd)
    assert (mounted / NAME).read_bytes() == images.data[NAME]


@pytest.mark.parametrize("protection", [mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE])
def test_no_map_shares_what_is_written_to_it(
    mounted: Mount, images: Images, protection: int
) -> None:
    """What is written to a shared map lies in the page cache, for every other reader to see."""
    path = mounted / NAME
    before = path.read_bytes()
    fd = os.open(path, os.O_RDWR)
    try:
        with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is looked at
            mmap.mmap(fd, 0, flags=mmap.MAP_SHARED, prot=protection)
        assert caught.value.errno == errno.ENODEV
        assert os.pread(fd, 100_000, 70_001) == before[70_001:170_001]
    finally:
        os.close(fd)
    assert path.read_bytes() == images.data[NAME]
