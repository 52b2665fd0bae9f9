"""Fixtures for tests that mount."""

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cachefs.store.store import Store
from tests.mount.fio import write_pattern
from tests.mount.mounts import Mount, Mounts, made_mounts
from tests.mount.samples import CHUNKS, MIB, import_samples
from tests.stores import import_file, new_store

PATTERN_BYTES = 32 * MIB


@dataclass(frozen=True)
class Images:
    """A store and what its images hold. Read-only by agreement; `copy` one to damage it."""

    store: Store
    data: dict[str, bytes] = field(repr=False)


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder with a short path: sockets lie in it."""
    folder = Path(tempfile.mkdtemp(prefix="cachefs-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def mounts(short_path: Path) -> Iterator[Mounts]:
    """Makes mounts; all are unmounted, and their gauges looked at, when the test ends."""
    with made_mounts(short_path) as made:
        yield made


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    """Images of every kind in every chunk size, and one pattern of fio's."""
    folder = tmp_path_factory.mktemp("images")
    store = new_store(folder)
    data: dict[str, bytes] = {}
    for chunk_bytes in CHUNKS:
        data |= import_samples(store, chunk_bytes)
    pattern = write_pattern(folder / "pattern", PATTERN_BYTES)
    import_file(store, pattern, "pattern", 64 * 1024)
    data["pattern"] = pattern.read_bytes()
    pattern.unlink()
    return Images(store, data)


@pytest.fixture(scope="session")
def shared_mount(images: Images) -> Iterator[Mount]:
    """One mount of all images for the tests that only read; ask for `mounted`."""
    with (
        tempfile.TemporaryDirectory(prefix="cachefs-") as folder,
        made_mounts(Path(folder)) as made,
    ):
        mount = made(images.store.url).start("fetchers=2")
        yield mount
        # They ask to die with their parent: with the daemon, and not with a thread of it that
        # ended after some idle seconds.
        assert mount.metrics()["fetcher_deaths"] == 0


@pytest.fixture
def mounted(shared_mount: Mount) -> Iterator[Mount]:
    """The mount of all images. Nothing waits or is held when a test has ended."""
    yield shared_mount
    shared_mount.check_idle()
