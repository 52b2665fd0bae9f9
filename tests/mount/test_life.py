"""Mounts begin and end: what stays warm, what is cleaned up, and what a person is told."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.mount.fixtures import Images
from tests.mount.mounts import CACHEFS, Mounts, exists, read_direct, wait_for
from tests.mount.samples import noise
from tests.stores import import_bytes, new_store

pytestmark = pytest.mark.mount

NAME = "64k/mixture"
MOUNT_FAILED = 8


def assert_refused(done: subprocess.CompletedProcess[str], exit_code: int, *parts: str) -> None:
    """One line on standard error that says what happened and what to do, and an exit code."""
    assert done.returncode == exit_code, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("cachefs: ")
    assert done.stderr.count("\n") == 1, done.stderr
    for part in parts:
        assert part in done.stderr


def test_a_second_mount_is_warm(mounts: Mounts, images: Images) -> None:
    mount = mounts(images.store.url).start()
    names = [name for name in images.data if "mixture" in name or "sparse" in name]
    for name in names:
        (mount / name).read_bytes()
    assert mount.metrics()["l3_requests"] > 0
    processes = mount.pids()
    mount.umount()
    wait_for(lambda: not any(map(exists, processes)), "the end of all, fetchers too")
    left = {"supervisor.sock", "daemon.sock", "state.json"} & set(os.listdir(mount.run_folder))
    assert not left

    mount.start()
    for name in names:
        assert read_direct(mount / name) == images.data[name]
    status = mount.daemon()
    assert status["metrics"]["l3_requests"] == status["metrics"]["miss_chunks"] == 0
    assert not status["l1"]["suspect"]


def test_a_daemon_that_was_killed_leaves_a_warm_cache(mounts: Mounts, images: Images) -> None:
    mount = mounts(images.store.url).start("scrub=0")
    read_direct(mount / NAME)
    commits = mount.metrics()["commits"]
    (mount / "64k/page").read_bytes()
    wait_for(lambda: mount.metrics()["commits"] > commits, "the next commit")
    mount.kill_daemon_and_wait()
    assert mount.daemon()["l1"]["suspect"]
    assert read_direct(mount / NAME) == images.data[NAME]
    assert mount.metrics()["l3_requests"] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_mount(mounts: Mounts, images: Images, number: signal.Signals) -> None:
    mount = mounts(images.store.url).start()
    read_direct(mount / NAME)
    processes = mount.pids()
    os.kill(mount.status()["pid"], number)
    wait_for(lambda: not any(map(exists, processes)), "the end of all processes")
    assert not mount.is_mounted()
    mount.start()
    read_direct(mount / NAME)
    assert mount.metrics()["l3_requests"] == 0  # it was a clean end


def test_plain_umount_ends_a_mount(mounts: Mounts, images: Images) -> None:
    mount = mounts(images.store.url).start()
    processes = mount.pids()
    subprocess.run(["umount", mount.mountpoint], check=True, timeout=60)
    wait_for(lambda: not any(map(exists, processes)), "the end of all processes")


@pytest.mark.parametrize("way", ["umount", "mount"])
def test_a_killed_supervisor_leaves_what_one_command_cleans_up(
    mounts: Mounts, images: Images, way: str
) -> None:
    mount = mounts(images.store.url).start()
    processes = mount.pids()
    os.kill(mount.status()["pid"], signal.SIGKILL)
    wait_for(lambda: not any(map(exists, processes)), "the end of all processes")
    with pytest.raises(OSError, match=r"not connected|connection abort"):
        os.listdir(mount.mountpoint)
    done = mount.command("status", mount.mountpoint)
    assert_refused(done, MOUNT_FAILED, "supervisor", "cachefs umount")
    if way == "umount":
        mount.umount()
        assert not mount.is_mounted()
        assert os.listdir(mount.mountpoint) == []
    mount.start()
    assert read_direct(mount / NAME) == images.data[NAME]


def test_umount_of_a_busy_mount_says_what_to_do(mounts: Mounts, images: Images) -> None:
    mount = mounts(images.store.url).start()
    with (mount / NAME).open("rb") as opened:
        done = mount.command("umount", mount.mountpoint)
        assert_refused(done, MOUNT_FAILED, f"{mount.mountpoint} is in use", "fuser -vm")
        assert opened.read() == images.data[NAME]  # it serves on
        supervisor = mount.supervised()["pid"]
        mount.umount("--lazy")
        assert not mount.is_mounted()
        assert opened.seek(0) == 0
        assert opened.read() == images.data[NAME]
    wait_for(lambda: not exists(supervisor), "the end of the mount")


def test_status_for_people_and_programs(mounts: Mounts, images: Images) -> None:
    mount = mounts(images.store.url).start()
    read_direct(mount / "pattern")
    told = mount.command("status", mount.mountpoint)
    assert told.returncode == 0
    for part in (str(mount.mountpoint), "serving", mount.store, "L1", "32 MiB", str(mount.cache)):
        assert part in told.stdout, told.stdout
    status = mount.status()
    assert status["state"] == "serving"
    metrics = status["daemon"]["metrics"]
    by_both = metrics["read_bytes"] + status["lane"]["reads"]["hit_bytes"]
    assert by_both == len(images.data["pattern"])
    assert status["daemon"]["l1"]["resident_bytes"] == len(images.data["pattern"])
    assert len(status["daemon"]["fetchers"]["pids"]) >= 1


def test_a_mount_in_the_foreground(mounts: Mounts, images: Images) -> None:
    mount = mounts(images.store.url)
    mount.foreground = subprocess.Popen(
        [CACHEFS, *mount.arguments(""), "--foreground"],
        env=mount.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for((mount / NAME).exists, "the mount")
    # It answers a little before its supervisor has seen that it does.
    wait_for(lambda: mount.supervised()["state"] == "serving", "the supervisor")
    assert read_direct(mount / NAME) == images.data[NAME]
    assert mount.foreground.poll() is None
    mount.foreground.send_signal(signal.SIGINT)  # Ctrl-C
    _, errors = mount.foreground.communicate(timeout=60)
    assert mount.foreground.returncode == 0
    assert "mounted" in errors  # the log is on the terminal
    assert not mount.is_mounted()


def test_what_cannot_be_mounted(mounts: Mounts, images: Images, tmp_path: Path) -> None:
    mount = mounts(images.store.url)
    file = tmp_path / "file"
    file.touch()
    base = ("mount", "--cache-dir", mount.cache)
    store = ("--store", mount.store)

    def refused(exit_code: int, arguments: tuple[str | Path, ...], *parts: str) -> None:
        assert_refused(mount.command(*base, *arguments), exit_code, *parts)

    refused(MOUNT_FAILED, (*store, tmp_path / "none"), "does not exist; make the folder first")
    refused(MOUNT_FAILED, (*store, file), "is not a folder")
    refused(2, (*store, "-o", "speed=9", mount.mountpoint), "'speed' does not exist: take one of")
    refused(2, (*store, "-o", "quota=much", mount.mountpoint), "quota_bytes", "'much'")
    refused(2, (*store, "-o", "quota=1KiB", mount.mountpoint), "quota_bytes", "1MiB")
    refused(2, (*store, "-o", "verify=never", mount.mountpoint), "verify", "'landing' or 'read'")
    refused(2, (*store, "--config", file.with_name("no"), mount.mountpoint), "no", "No such file")
    refused(2, (mount.mountpoint,), "which store?", "--store")
    refused(4, ("--store", tmp_path / "none", mount.mountpoint), "none/cachefs.json", "No such")
    refused(2, ("--store", "ftp://host/store", mount.mountpoint), "ftp://")
    assert_refused(mount.command("umount", mount.mountpoint), MOUNT_FAILED, "not a cachefs mount")
    assert not mount.is_mounted()
    assert not mount.cache.exists()


def test_one_mountpoint_takes_one_mount(mounts: Mounts, images: Images) -> None:
    mount = mounts(images.store.url).start()
    pid = mount.supervised()["pid"]
    done = mount.try_start()
    assert_refused(done, MOUNT_FAILED, "is a cachefs mount already", f"umount {mount.mountpoint}")
    assert mount.supervised()["pid"] == pid
    assert read_direct(mount / NAME) == images.data[NAME]


def test_one_cache_folder_takes_one_mount(mounts: Mounts, images: Images) -> None:
    mount, other = mounts(images.store.url).start(), mounts(images.store.url)
    other.cache = mount.cache
    done = other.try_start()
    assert_refused(done, 6, f"{mount.cache} is in use by process", "--cache-dir")
    assert not other.is_mounted()
    assert read_direct(mount / NAME) == images.data[NAME]


def test_a_cache_folder_of_another_store_is_refused(
    mounts: Mounts, images: Images, tmp_path: Path
) -> None:
    mount = mounts(images.store.url).start()
    mount.umount()
    before = sorted(path.name for path in mount.cache.rglob("*"))
    store = new_store(tmp_path)
    import_bytes(store, noise(5000), NAME)
    other = mounts(store.url)
    other.cache = mount.cache
    done = other.try_start()
    assert_refused(done, 5, f"{mount.cache} belongs to another store", "--cache-dir")
    assert sorted(path.name for path in mount.cache.rglob("*")) == before


def test_a_folder_that_is_no_cache_is_refused_and_left_alone(
    mounts: Mounts, images: Images, tmp_path: Path
) -> None:
    mount = mounts(images.store.url)
    mount.cache = tmp_path / "papers"
    mount.cache.mkdir()
    (mount.cache / "letter").write_text("dear")
    assert_refused(mount.try_start(), 5, "is no cache folder", "letter", "--cache-dir")
    assert (mount.cache / "letter").read_text() == "dear"


@pytest.mark.parametrize("record", ['{"format": 9, "store": "x"}', "[1", "{}"])
def test_a_cache_of_another_format_is_refused(mounts: Mounts, images: Images, record: str) -> None:
    mount = mounts(images.store.url)
    mount.cache.mkdir()
    (mount.cache / "cachefs-cache.json").write_text(record)
    assert_refused(mount.try_start(), 5, "remove")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"format": 2, "identity": "x"}', "format 2"),
        ("not even JSON", "cachefs.json"),
        ("[]", "cachefs.json"),
    ],
)
def test_a_store_of_another_format_is_refused(
    mounts: Mounts, images: Images, tmp_path: Path, content: str, message: str
) -> None:
    root = tmp_path / "store"
    shutil.copytree(images.store.url.removeprefix("file://"), root)
    description = json.loads((root / "cachefs.json").read_text())
    assert description["format"] == 1
    (root / "cachefs.json").write_text(content)
    mount = mounts(root)
    assert_refused(mount.try_start(), 5, message)
    assert not mount.is_mounted()


def test_a_configuration_file(mounts: Mounts, images: Images, tmp_path: Path) -> None:
    mount = mounts(images.store.url)
    config = tmp_path / "cachefs.toml"
    config.write_text(
        f'[store]\nurl = "{mount.store}"\n[l1]\ndir = "{mount.cache}"\nquota_bytes = "48MiB"\n'
        'verify = "read"\n'
    )
    arguments = ("mount", "--config", config, "-o", "quota=64MiB", mount.mountpoint)
    done = mount.command(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert mount.daemon()["l1"]["quota_bytes"] == 64 << 20  # what the command line says wins
    assert mount.daemon()["l1"]["dir"] == str(mount.cache)
    assert read_direct(mount / NAME) == images.data[NAME]
