"""A whole Debian system with systemd boots from a mounted image (`make guest`)."""

from pathlib import Path

import pytest

from tests.e2e.conftest import cachefs
from tests.e2e.guest import boot, create_overlay
from tests.e2e.kernel import guest_kernel
from tests.images.debian import MARKER, debian_images

pytestmark = [pytest.mark.guest, pytest.mark.mount, pytest.mark.timeout(900)]


@pytest.mark.parametrize("version", [0, 1], ids=["released", "upgraded"])
def test_debian_boots_and_every_file_is_right(version: int, tmp_path: Path) -> None:
    source = debian_images()[version]
    store, mountpoint = tmp_path / "store", tmp_path / "mount"
    mountpoint.mkdir()
    cachefs("init", store)
    cachefs("import", "--store", store, source, "templates/debian")
    cachefs("mount", "--store", store, "--cache-dir", tmp_path / "cache", mountpoint)
    try:
        overlay = create_overlay(mountpoint / "templates/debian", tmp_path / "overlay.qcow2")
        console = boot(guest_kernel(), overlay, "cachefs.check", memory_mib=512, wait_s=600)
    finally:
        cachefs("umount", mountpoint)

    assert MARKER in console, console
