"""Reading ahead, through a mount: what it brings, and what it must not cost."""

import os
import random
import urllib.request
from pathlib import Path

import pytest

from cachefs.store.layout import PROFILES_PREFIX
from cachefs.store.store import Store
from tests.l2_servers import free_port
from tests.mount.mounts import Mount, Mounts, read_direct, wait_for
from tests.mount.samples import KIB, MIB, noise
from tests.stores import import_bytes, new_store

pytestmark = pytest.mark.mount

CHUNK_BYTES = 64 * KIB
DATA = noise(48 * MIB, 4)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = new_store(tmp_path_factory.mktemp("ahead"))
    import_bytes(store, DATA, "image", CHUNK_BYTES)
    return store


@pytest.fixture(autouse=True)
def _nothing_learned(store: Store) -> None:
    """Seconds after an image is closed its profile is in the store, which the tests share."""
    for info in list(store.objects.list(PROFILES_PREFIX)):
        store.objects.delete(info.key)


@pytest.fixture
def mount(mounts: Mounts, store: Store) -> Mount:
    return mounts(store.url).start()


def pattern(path: Path) -> str:
    return os.getxattr(path, "user.cachefs.pattern").decode()


def test_a_sequential_reader_finds_most_in_l1(mount: Mount) -> None:
    path = mount / "image"
    with path.open("rb") as opened:
        assert (read_direct(path) == DATA) is True
        wait_for(lambda: pattern(path) == "sequential, steady", "the pattern")
        metrics = mount.metrics()
        assert metrics["ahead_chunks"] > 0.8 * len(DATA) / CHUNK_BYTES
        assert metrics["l3_chunks"] == len(DATA) / CHUNK_BYTES  # each once
        assert metrics["l3_requests"] < len(DATA) / MIB  # and not one for each read
        assert opened.read(10) == DATA[:10]
        wait_for(lambda: mount.metrics()["lane_hits"] > 0, "a hit of the lane")
    told = mount.status()["daemon"]["prefetch"]
    assert told["arms"]["sequential"]["accuracy"] == 1.0
    assert told["images"]["image"]["pattern"] == "sequential, steady"
    assert "of them late" in mount.command("status", mount.mountpoint).stdout


def test_arms_are_metrics_with_labels(mounts: Mounts, store: Store) -> None:
    port = free_port()
    mount = mounts(store.url).start(f"metrics=127.0.0.1:{port}")
    read_direct(mount / "image", 0, 16 * MIB)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        told = answer.read().decode()
    assert 'cachefs_prefetch_chunks_total{arm="sequential",end="used"}' in told
    assert 'cachefs_prefetch_accuracy{arm="sequential"}' in told
    assert "cachefs_ahead_chunks_total" in told


def test_a_random_reader_fetches_no_more_than_its_chunks(mount: Mount) -> None:
    path = mount / "image"
    chance = random.Random(1)
    offsets = [chance.randrange(len(DATA) // 4096) * 4096 for _ in range(600)]
    with path.open("rb"):
        for at in offsets:
            assert read_direct(path, at, 4096) == DATA[at : at + 4096]
        wait_for(lambda: pattern(path).startswith("random"), "the pattern")
        metrics = mount.metrics()
    touched = len({at // CHUNK_BYTES for at in offsets})
    assert metrics["l3_chunks"] <= 1.05 * touched
    assert metrics["ahead_chunks"] <= 0.05 * touched


def test_without_it_nothing_is_fetched_ahead(mounts: Mounts, store: Store) -> None:
    mount = mounts(store.url).start("noprefetch")
    assert (read_direct(mount / "image", 0, 16 * MIB) == DATA[: 16 * MIB]) is True
    metrics = mount.metrics()
    assert metrics["ahead_chunks"] == metrics["ahead_requests"] == 0
    assert metrics["l3_chunks"] == 16 * MIB / CHUNK_BYTES
    assert pattern(mount / "image") == "unknown"
    assert mount.status()["daemon"]["prefetch"] is None


def test_l1_far_smaller_than_the_image_is_no_trouble(mounts: Mounts, store: Store) -> None:
    mount = mounts(store.url).start("quota=16MiB")
    for _ in range(2):
        assert (read_direct(mount / "image") == DATA) is True
    metrics = mount.metrics()
    assert metrics["ahead_used"] + metrics["ahead_late"] > 0
    assert metrics["ahead_evicted"] < 0.05 * metrics["ahead_chunks"]
    mount.check_slots()


def test_two_that_interleave_and_one_backwards_are_each_run_ahead_of(mount: Mount) -> None:
    path = mount / "image"
    half = len(DATA) // 2
    with path.open("rb"):
        for n in range(0, half, 256 * KIB):
            back = len(DATA) - n - 256 * KIB
            assert read_direct(path, n, 256 * KIB) == DATA[n : n + 256 * KIB]
            assert read_direct(path, back, 256 * KIB) == DATA[back : back + 256 * KIB]
        metrics = mount.metrics()
    assert metrics["l3_chunks"] == len(DATA) / CHUNK_BYTES
    assert metrics["ahead_chunks"] > 0.6 * len(DATA) / CHUNK_BYTES


def test_a_closed_file_is_not_read_on(mount: Mount) -> None:
    path = mount / "image"
    read_direct(path, 0, 8 * MIB)
    wait_for(lambda: mount.metrics()["ahead_jobs"] == 0, "the last job")
    come = mount.metrics()["l3_chunks"]
    assert come < 8 * MIB / CHUNK_BYTES * 2.2
    wait_for(lambda: mount.metrics()["ahead_unread_bytes"] == 0, "the end of what nobody read")
    metrics = mount.metrics()
    assert metrics["l3_chunks"] == come
    assert (
        metrics["ahead_used"] + metrics["ahead_late"] + metrics["ahead_wasted"]
        == (metrics["ahead_chunks"])
    )
