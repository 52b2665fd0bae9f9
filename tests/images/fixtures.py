"""The images as pytest fixtures: made once a run, read-only by agreement."""

from pathlib import Path

import pytest

from tests.images.disks import MIB, build_two_versions
from tests.images.memory import build_memory

DISK_BYTES = 96 * MIB
MEMORY_BYTES = 64 * MIB


@pytest.fixture(scope="session")
def disk_versions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two versions of a 96 MiB disk image with an ext4 file system of real files in it."""
    return build_two_versions(tmp_path_factory.mktemp("disks"), DISK_BYTES)


@pytest.fixture(scope="session")
def disk_image(disk_versions: tuple[Path, Path]) -> Path:
    """A 96 MiB disk image with an ext4 file system of real files in it."""
    return disk_versions[0]


@pytest.fixture(scope="session")
def memory_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 64 MiB file that looks like a guest's memory: holes, zero, repeated and random pages."""
    return build_memory(tmp_path_factory.mktemp("memory") / "memory.img", MEMORY_BYTES)
