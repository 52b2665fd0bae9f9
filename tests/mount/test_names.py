"""The mount shows what the store has now, and an open file stays what it was."""

import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from cachefs.store.store import Store
from tests.mount.mounts import Mount, Mounts, read_direct, wait_for
from tests.mount.samples import KIB, noise, store_path
from tests.stores import CHUNK, import_bytes, new_store

pytestmark = pytest.mark.mount

SECONDS = 10  # "within a few seconds", on a machine that does other things too
FIRST, SECOND = noise(300 * KIB, 1), noise(200 * KIB + 11, 2)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with one image."""
    store = new_store(tmp_path)
    import_bytes(store, FIRST, "guests/disk")
    return store


@pytest.fixture
def mount(mounts: Mounts, store: Store) -> Mount:
    """It, mounted."""
    return mounts(store.url).start("refresh=0.5")


def test_a_new_image_appears(mount: Mount, tmp_path: Path) -> None:
    path = mount / "guests/other"
    assert not path.exists()  # the kernel may remember that, and not for long
    source = tmp_path / "other.img"
    source.write_bytes(SECOND)
    done = mount.command("import", "--store", mount.store, source, "guests/other")
    assert done.returncode == 0, done.stderr
    wait_for(path.exists, "the new image", SECONDS)
    assert path.read_bytes() == SECOND
    assert sorted(os.listdir(mount / "guests")) == ["disk", "other"]


def test_a_new_version_appears_and_an_open_file_stays(
    mount: Mount, store: Store, tmp_path: Path
) -> None:
    path = mount / "guests/disk"
    old_inode = path.stat().st_ino
    with path.open("rb", buffering=0) as opened:
        assert opened.read(CHUNK) == FIRST[:CHUNK]
        source = tmp_path / "next.img"
        source.write_bytes(SECOND)
        done = mount.command("import", "--store", mount.store, source, "guests/disk")
        assert done.returncode == 0, done.stderr
        wait_for(lambda: path.stat().st_size == len(SECOND), "the new version", SECONDS)
        assert path.stat().st_ino != old_inode
        assert path.read_bytes() == SECOND
        assert os.getxattr(path, "user.cachefs.version") == b"2"
        # Of the old one most bytes were not even fetched yet.
        assert opened.seek(0) == 0
        assert opened.readall() == FIRST
        assert os.fstat(opened.fileno()).st_size == len(FIRST)


def test_an_open_file_stays_across_a_killed_daemon(mount: Mount, store: Store) -> None:
    path = mount / "guests/disk"
    fds = [os.open(path, os.O_RDONLY | os.O_DIRECT * direct) for direct in (False, True)]
    try:
        assert os.pread(fds[0], 10, 0) == FIRST[:10]
        import_bytes(store, SECOND, "guests/disk")
        wait_for(lambda: path.stat().st_size == len(SECOND), "the new version", SECONDS)
        mount.kill_daemon_and_wait()
        for fd in fds:
            assert os.pread(fd, len(FIRST), 0) == FIRST
        assert read_direct(path) == SECOND
        mount.kill_daemon_and_wait()  # and again: nothing of what they need was forgotten
        assert os.pread(fds[1], len(FIRST), 0) == FIRST
        assert os.stat(path).st_size == len(SECOND)
    finally:
        for fd in fds:
            os.close(fd)


def test_a_version_that_appears_while_no_daemon_lives(mount: Mount, store: Store) -> None:
    path = mount / "guests/disk"
    with path.open("rb", buffering=0) as opened:
        mount.kill_daemon()
        import_bytes(store, SECOND, "guests/disk")
        wait_for(lambda: path.stat().st_size == len(SECOND), "the new version")
        assert opened.readall() == FIRST
    assert path.read_bytes() == SECOND


def test_rename_and_rm_are_seen(mount: Mount) -> None:
    old, new = mount / "guests/disk", mount / "archive/2024/disk"
    with old.open("rb", buffering=0) as opened:
        done = mount.command("rename", "--store", mount.store, "guests/disk", "archive/2024/disk")
        assert done.returncode == 0, done.stderr
        wait_for(lambda: new.exists() and not old.exists(), "the new name", SECONDS)
        assert new.read_bytes() == FIRST
        assert not (mount / "guests").exists()  # a folder is there for its images only
        done = mount.command("rm", "--store", mount.store, "--yes", "archive/2024/disk")
        assert done.returncode == 0, done.stderr
        wait_for(lambda: not new.exists(), "the end of the name", SECONDS)
        assert os.listdir(mount.mountpoint) == []
        assert opened.readall() == FIRST


def test_an_image_below_another_is_hidden_and_told(mount: Mount, store: Store) -> None:
    import_bytes(store, SECOND, "other")
    # An import refuses that name; two that race can make it.
    store.publish(replace(store.image("other")[0], name="guests/disk/part"), None)
    wait_for(lambda: mount.daemon()["store"]["hidden"] == ["guests/disk/part"], "a hidden image")
    assert (mount / "guests/disk").read_bytes() == FIRST
    wait_for(lambda: "'guests/disk/part' is hidden" in mount.log(), "a line in the log")
    done = mount.command("rm", "--store", mount.store, "--yes", "guests/disk")
    assert done.returncode == 0, done.stderr
    wait_for((mount / "guests/disk/part").exists, "the image that was hidden", SECONDS)
    assert (mount / "guests/disk/part").read_bytes() == SECOND
    assert mount.daemon()["store"]["hidden"] == []


def test_a_record_that_cannot_be_read_hides_no_other(mount: Mount, store: Store) -> None:
    folder = store_path(store) / "images"
    (folder / "broken.json").write_text("{")
    (folder / "future.json").write_text(json.dumps({"format": 2, "name": "future"}))
    import_bytes(store, SECOND, "new")
    wait_for((mount / "new").exists, "the new image", SECONDS)
    assert sorted(os.listdir(mount.mountpoint)) == ["guests", "new"]
    assert "future.json has format 2, this cachefs knows 1: use a newer cachefs" in mount.log()
    assert "broken.json is not an image record" in mount.log()


def test_thousands_of_images_in_nested_folders(mounts: Mounts, store: Store) -> None:
    folder = store_path(store) / "images"
    image, _ = store.image("guests/disk")
    names = [f"{n % 3}/{n % 30}/image-{n:04}" for n in range(2400)]
    names += [f"wide/image-{n:04}" for n in range(1500)] + [
        "wide/Grün ✓ (neu)",
        "wide/" + "n" * 200,
    ]
    for name in names:
        path = folder / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(replace(image, name=name).to_json())
    mount = mounts(store.url).start()
    begin_s = time.monotonic()
    found = {
        str(Path(place, name).relative_to(mount.mountpoint))
        for place, _, leaves in os.walk(mount.mountpoint)
        for name in leaves
    }
    assert found == {*names, "guests/disk"}
    assert time.monotonic() - begin_s < 10
    assert (mount / names[-2]).read_bytes() == FIRST
    # Somebody who lists a folder while names come and go sees each that stays exactly once.
    with os.scandir(mount / "wide") as entries:
        seen = [next(entries).name for _ in range(5)]
        shutil.rmtree(folder / "0")
        wait_for(lambda: not (mount / "0").exists(), "the end of a folder", SECONDS)
        seen += [entry.name for entry in entries]
    assert sorted(seen) == sorted(name.removeprefix("wide/") for name in names if "wide" in name)
