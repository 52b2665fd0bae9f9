"""A store with real images, mounted through the command line, for whole systems to run on."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.guest import build_guest_image
from tests.images.disks import MIB
from tests.images.fixtures import disk_image, disk_versions, memory_image

__all__ = ["disk_image", "disk_versions", "memory_image"]

CACHEFS = Path(sys.executable).with_name("cachefs")
COMMAND_WAIT_S = 60
PATTERN_BYTES = 64 * MIB


def cachefs(*arguments: str | Path) -> str:
    """Run the command line; returns what it prints, fails the test if it fails."""
    done = subprocess.run(
        [CACHEFS, *arguments], capture_output=True, text=True, timeout=COMMAND_WAIT_S, check=False
    )
    if done.returncode:
        words = " ".join(str(argument) for argument in arguments)
        pytest.fail(f"`cachefs {words}` ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


@dataclass(frozen=True)
class Mounted:
    """Images on a mount, each beside the file that it was imported from."""

    mountpoint: Path
    sources: dict[str, Path]

    def __getitem__(self, name: str) -> Path:
        return self.mountpoint / name


@pytest.fixture(scope="session")
def guest_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bootable 64 MiB root file system."""
    return build_guest_image(tmp_path_factory.mktemp("guest"))


@pytest.fixture(scope="session")
def pattern_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file whose every 4 KiB block has a header that fio can check, its offset in it."""
    image = tmp_path_factory.mktemp("pattern") / "pattern.img"
    options = [f"--filename={image}", f"--size={PATTERN_BYTES}", "--name=pattern"]
    options += ["--rw=write", "--bs=4k", "--verify=crc32c", "--do_verify=0", "--end_fsync=1"]
    # Otherwise fio leaves a file about its verification where the tests are run.
    options += ["--verify_state_save=0"]
    subprocess.run(["fio", *options], check=True, capture_output=True)
    return image


@pytest.fixture(scope="session")
def mounted(
    tmp_path_factory: pytest.TempPathFactory,
    disk_versions: tuple[Path, Path],
    memory_image: Path,
    guest_image: Path,
    pattern_image: Path,
) -> Iterator[Mounted]:
    """All images in one store, mounted, nothing cached yet."""
    folder = tmp_path_factory.mktemp("mounted")
    sources = {
        "disks/v1": disk_versions[0],
        "disks/v2": disk_versions[1],
        "memory": memory_image,
        "guest": guest_image,
        "pattern": pattern_image,
    }
    store, mountpoint = folder / "store", folder / "mount"
    mountpoint.mkdir()
    cachefs("init", store)
    for name, source in sources.items():
        cachefs("import", "--store", store, source, name)
    cachefs("mount", "--store", store, "--cache-dir", folder / "cache", mountpoint)
    try:
        yield Mounted(mountpoint, sources)
    finally:
        cachefs("umount", mountpoint)
