"""`cachefs warm`, through a mount."""

import json
from pathlib import Path

import pytest

from cachefs.store.store import Store
from tests.mount.mounts import Mount, Mounts, read_direct, wait_for
from tests.mount.samples import KIB, MIB, noise
from tests.stores import import_bytes, new_store

pytestmark = pytest.mark.mount

CHUNK_BYTES = 64 * KIB
DATA = noise(24 * MIB, 9)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = new_store(tmp_path_factory.mktemp("warm"))
    import_bytes(store, DATA, "templates/image", CHUNK_BYTES)
    return store


def warm(mount: Mount, *arguments: str) -> dict[str, object]:
    done = mount.command("warm", "--json", *arguments, mount.mountpoint, "templates/image")
    assert done.returncode == 0, (done.stderr, mount.log())
    told: dict[str, object] = json.loads(done.stdout)
    return told


def test_a_warmed_image_is_all_hits_of_the_lane(mounts: Mounts, store: Store) -> None:
    mount = mounts(store.url).start()
    told = warm(mount)
    assert told["state"] == "done"
    assert told["fetched_bytes"] == len(DATA)
    assert mount.metrics()["l3_requests"] < 2 * len(DATA) / MIB
    assert (read_direct(mount / "templates/image") == DATA) is True
    metrics = mount.metrics()
    assert metrics["miss_chunks"] == 0
    assert metrics["l3_chunks"] == len(DATA) / CHUNK_BYTES
    assert warm(mount)["fetched_chunks"] == 0


def test_a_part_of_it_in_the_background_and_cancelled(mounts: Mounts, store: Store) -> None:
    mount = mounts(store.url).start()
    told = warm(mount, "--range", "0-1MiB", "--range", "20MiB-21MiB")
    assert told["fetched_bytes"] == 2 * MIB
    warm(mount, "--background", "--rate", "1MiB")
    again = mount.command("warm", mount.mountpoint, "templates/image")
    assert (again.returncode, "is being warmed already" in again.stderr) == (6, True)
    wait_for(lambda: warm(mount, "--show")["state"] == "running", "its beginning")
    warm(mount, "--cancel")
    wait_for(lambda: warm(mount, "--show")["state"] == "cancelled", "its end")
    for offset in (0, 20 * MIB):
        assert read_direct(mount / "templates/image", offset, MIB) == DATA[offset : offset + MIB]
    assert mount.metrics()["read_errors"] == 0


def test_what_cannot_be_warmed_says_why(mounts: Mounts, store: Store, tmp_path: Path) -> None:
    mount = mounts(store.url).start("quota=8MiB")
    for arguments, code, message in (
        ((mount.mountpoint, "templates/image"), 7, "L1 is full"),
        ((mount.mountpoint, "nothing"), 3, "there is no image 'nothing'"),
        (("--range", "100MiB-200MiB", mount.mountpoint, "templates/image"), 2, "is no part of"),
        (("--range", "7", mount.mountpoint, "templates/image"), 2, "is not a range"),
        ((tmp_path, "templates/image"), 8, "daemon"),
    ):
        done = mount.command("warm", *arguments)
        assert (done.returncode, message in done.stderr) == (code, True), done
    assert mount.metrics()["evicted_chunks"] == 0
