"""qemu's own tools judge the mounted images."""

import subprocess
from pathlib import Path

import pytest

from tests.e2e.conftest import Mounted
from tests.e2e.guest import create_overlay

pytestmark = [pytest.mark.e2e, pytest.mark.mount]


def qemu_img(*arguments: str | Path) -> str:
    done = subprocess.run(["qemu-img", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["disks/v1", "disks/v2", "memory", "guest"])
def test_source_and_mounted_image_are_identical(mounted: Mounted, name: str) -> None:
    told = qemu_img("compare", "-f", "raw", "-F", "raw", mounted.sources[name], mounted[name])

    assert "Images are identical" in told


@pytest.mark.parametrize("cache_mode", ["none", "writeback", "directsync"])
def test_image_is_a_backing_file_in_every_cache_mode(
    mounted: Mounted, cache_mode: str, tmp_path: Path
) -> None:
    overlay = create_overlay(mounted["disks/v2"], tmp_path / "overlay.qcow2")
    flat = tmp_path / "flat.raw"

    qemu_img("convert", "-T", cache_mode, "-f", "qcow2", "-O", "raw", overlay, flat)

    assert flat.read_bytes() == mounted.sources["disks/v2"].read_bytes()
