"""Policies on a real mount: changed while it runs, kept by the next daemon, learning."""

import json
from pathlib import Path
from random import Random

import pytest

from cachefs.daemon.learning import read_model
from tests.mount.learning import TRAINER_WAIT_S
from tests.mount.mounts import Mount, Mounts, read_direct, wait_for
from tests.stores import import_bytes, new_store

pytestmark = pytest.mark.mount

CHUNK = 64 * 1024
CHUNKS = 96


def policy(mount: Mount, *name: str) -> str:
    done = mount.command("policy", "--json", mount.mountpoint, *name)
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["policy"])


def read_at_random(path: Path, data: bytes, seed: int, reads: int = 250) -> None:
    rng = Random(seed)
    for _ in range(reads):
        index = min(int(rng.expovariate(0.06)), CHUNKS - 1)
        part = slice(index * CHUNK, (index + 1) * CHUNK)
        assert read_direct(path, part.start, CHUNK) == data[part]


@pytest.fixture
def data() -> bytes:
    return Random(7).randbytes(CHUNKS * CHUNK)


def test_policies_change_under_reads_and_outlive_the_daemon(
    mounts: Mounts, tmp_path: Path, data: bytes
) -> None:
    store = new_store(tmp_path)
    import_bytes(store, data, chunk_bytes=CHUNK)
    mount = mounts(store.url).start("quota=2MiB,eviction=lru")
    for number, name in enumerate(["lru", "sieve", "s3fifo", "2q", "arc", "lfu", "ml", "lru"]):
        assert policy(mount, name) == name
        read_at_random(mount / "image", data, number)
    assert mount.metrics()["evicted_chunks"] > 100
    assert policy(mount, "sieve") == "sieve"
    mount.kill_daemon_and_wait()
    assert policy(mount) == mount.daemon()["l1"]["policy"] == "sieve"
    read_at_random(mount / "image", data, 99)
    done = mount.command("policy", mount.mountpoint, "best")
    assert done.returncode != 0
    assert "there are lru" in done.stderr
    mount.umount()
    mount.start("quota=2MiB,eviction=lru")
    assert policy(mount) == "lru"


def test_a_mount_learns(mounts: Mounts, tmp_path: Path, data: bytes) -> None:
    store = new_store(tmp_path)
    import_bytes(store, data, chunk_bytes=CHUNK)
    mount = mounts(store.url).start("quota=2MiB,eviction=ml")
    for seed in range(30):
        read_at_random(mount / "image", data, seed, 500)
        if mount.metrics()["trainings"]:
            break
    wait_for(lambda: mount.metrics()["trainings"] > 0, "the first model", TRAINER_WAIT_S)
    read_at_random(mount / "image", data, 77)
    exported = tmp_path / "model"
    assert mount.command("model", "export", mount.mountpoint, exported).returncode == 0
    shown = mount.command("model", "show", mount.mountpoint)
    assert "chunks of 64 KiB" in shown.stdout
    assert "trees" in shown.stdout
    assert "trained   last at 20" in shown.stdout
    mount.umount()
    mount.start("quota=2MiB,eviction=ml")
    read_direct(mount / "image", 0, CHUNK)
    wait_for(
        lambda: "trees" in mount.command("model", "show", mount.mountpoint).stdout,
        "the model of the last mount",
    )
    assert mount.command("model", "reset", mount.mountpoint).returncode == 0
    assert "none yet" in mount.command("model", "show", mount.mountpoint).stdout
    assert mount.command("model", "import", mount.mountpoint, exported).returncode == 0
    assert "trees" in mount.command("model", "show", mount.mountpoint).stdout


def test_kill_9_while_it_learns_leaves_a_model_or_none(
    mounts: Mounts, tmp_path: Path, data: bytes
) -> None:
    """At any moment: of a training, of a save, of neither."""
    store = new_store(tmp_path)
    import_bytes(store, data, chunk_bytes=CHUNK)
    mount = mounts(store.url).start("quota=2MiB")
    assert policy(mount) == "ml"  # the default
    path = mount.cache / f"model-{CHUNK}"
    for round_ in range(2):
        for seed in range(11):
            read_at_random(mount / "image", data, 20 * round_ + seed, 500)
        mount.kill_daemon_and_wait()
        assert not path.exists() or read_model(path).trainings >= 1
    read_at_random(mount / "image", data, 99)
    wait_for(lambda: path.exists() or mount.metrics()["trainings"], "a model", TRAINER_WAIT_S)
    mount.umount()
    assert path.exists()
