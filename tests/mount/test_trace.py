"""Recordings on a mount: what was read, in a file that everything reads that reads recordings."""

import json
import signal
import subprocess
from pathlib import Path

import pytest

from cachefs.simulate.readers import read_requests
from tests.mount.mounts import CACHEFS, Mount, Mounts, read_direct, wait_for
from tests.mount.samples import KIB, MIB, noise
from tests.stores import import_bytes, new_store

pytestmark = pytest.mark.mount

DATA = noise(8 * MIB, 3)


@pytest.fixture
def mount(mounts: Mounts, tmp_path: Path) -> Mount:
    store = new_store(tmp_path / "shared")
    import_bytes(store, DATA, "image", 64 * KIB)
    import_bytes(store, DATA, "other", 64 * KIB)
    return mounts(store.url).start()


def recorder(mount: Mount, file: Path, seconds: float) -> "subprocess.Popen[str]":
    command = [
        CACHEFS,
        "trace",
        "record",
        "--seconds",
        str(seconds),
        mount.mountpoint,
        "image",
        file,
    ]
    started = subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.PIPE, text=True, env=mount.environment
    )

    def is_on() -> bool:
        second = mount.command("trace", "record", "--seconds", "1", mount.mountpoint, "none", file)
        return "one at a time" in second.stderr

    wait_for(is_on, "the recording")
    return started


def read_some(mount: Mount) -> list[int]:
    offsets = [0, 5 * MIB, 64 * KIB, 7 * MIB, 3 * MIB]
    for at in offsets:
        assert read_direct(mount / "image", at, 4096) == DATA[at : at + 4096]
        assert read_direct(mount / "other", at, 4096) == DATA[at : at + 4096]
    return offsets


def test_reads_of_one_image_are_recorded_and_replayed(mount: Mount, tmp_path: Path) -> None:
    file = tmp_path / "reads.npz"
    read_direct(mount / "image", MIB, 4096)  # before: no part of it
    recording = recorder(mount, file, 60)
    offsets = read_some(mount)
    recording.send_signal(signal.SIGINT)
    told, _ = recording.communicate(timeout=60)
    assert told == f"5 reads in {file}\n"
    requests = read_requests(file)
    assert requests.offset_bytes.tolist() == offsets
    assert requests.length_bytes.tolist() == [4096] * 5
    done = mount.command("trace", "replay", "--json", "--size", "100%", file)
    assert json.loads(done.stdout)["misses_without"] == 5
    assert mount.command("simulate", "--policy", "2q", file).returncode == 0


def test_a_recorder_that_is_killed_leaves_a_file_all_the_same(mount: Mount, tmp_path: Path) -> None:
    file = tmp_path / "reads.npz"
    recording = recorder(mount, file, 10)
    read_some(mount)
    recording.kill()
    recording.communicate()
    assert not file.exists()
    wait_for(file.exists, "the end of its time")  # 5 s after the command's
    assert len(read_requests(file)) == 5


def test_what_cannot_be_recorded_is_told(mount: Mount, tmp_path: Path) -> None:
    gone = mount.command(
        "trace", "record", "--seconds", "1", mount.mountpoint, "none", tmp_path / "a"
    )
    assert "no image 'none'" in gone.stderr
    folder = tmp_path / "no" / "folder"
    refused = mount.command("trace", "record", "--seconds", "1", mount.mountpoint, "image", folder)
    assert "no folder" in refused.stderr
