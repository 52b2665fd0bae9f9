"""What the kernel has, it does not ask for again."""

from pathlib import Path

import pytest

from mount_helper import mounting
from tests.mount.fixtures import Images
from tests.mount.mounts import Mount, Mounts

pytestmark = pytest.mark.mount

NAMES = ("4k/mixture", "64k/sparse", "1024k/mixture", "pattern")


def test_warm_buffered_reads_never_reach_the_daemon(mounted: Mount, images: Images) -> None:
    for name in NAMES:
        (mounted / name).read_bytes()
    before = mounted.metrics()
    requests = mounted.supervised()["lane"]["requests_by_opcode"]
    for _ in range(3):
        for name in NAMES:  # each time opened anew: the pages outlive the file
            assert (mounted / name).read_bytes() == images.data[name]
    after = mounted.metrics()
    assert after["reads"] == before["reads"]
    read = str(15)  # FUSE_READ
    assert mounted.supervised()["lane"]["requests_by_opcode"][read] == requests[read]


def test_cold_buffered_reads_do_reach_it(mounts: Mounts, images: Images) -> None:
    """So that the test above can fail; and few large requests, as read_ahead_kb allows."""
    mount = mounts(images.store.url).start()
    (mount / "pattern").read_bytes()
    reads = mount.metrics()["reads"]
    assert 0 < reads <= len(images.data["pattern"]) // (256 * 1024)


def read_ahead_kb(mount: Mount) -> int:
    device = mounting.mounts_at(str(mount.mountpoint))[-1].device
    return int(Path(f"/sys/class/bdi/{device}/read_ahead_kb").read_text(encoding="ascii"))


def test_read_ahead_is_raised(mounted: Mount, mounts: Mounts, images: Images) -> None:
    assert read_ahead_kb(mounted) == 1024
    other = mounts(images.store.url).start("read_ahead=256KiB")
    assert read_ahead_kb(other) == 256
