"""What guests touch at a start, through mounts: learned, shared, replayed; and not believed."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blake3 import blake3

from cachefs.policy.prefetch.learner import SECTIONS
from cachefs.policy.prefetch.profile import Profile, from_bytes, to_bytes
from cachefs.store.layout import profile_key
from cachefs.store.store import Store
from tests.mount.mounts import Mount, Mounts, read_direct, wait_for
from tests.mount.samples import KIB, MIB, noise
from tests.stores import import_bytes, new_store

pytestmark = pytest.mark.mount

CHUNK = 64 * KIB
DATA = noise(24 * MIB, 11)
NAME = "templates/debian"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = new_store(tmp_path / "shared")
    import_bytes(store, DATA, NAME, CHUNK)
    return store


def touched() -> list[int]:
    """What a guest reads at its start, in an order that no stream has."""
    return random.Random(5).sample(range(len(DATA) // CHUNK), 80)


def boot(mount: Mount, chunks: list[int]) -> None:
    path = mount / NAME
    with path.open("rb"):
        for chunk in chunks:
            at = chunk * CHUNK
            assert read_direct(path, at, 4096) == DATA[at : at + 4096]


def profiles(mount: Mount, *arguments: str | Path) -> list[dict[str, Any]]:
    done = mount.command("profile", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)["profiles"]
    return found


def key_of(chunk: int) -> int:
    digest = blake3(DATA[chunk * CHUNK : (chunk + 1) * CHUNK]).digest()
    return int.from_bytes(digest[:8], "little")


def arms(mount: Mount) -> dict[str, dict[str, Any]]:
    told: dict[str, dict[str, Any]] = mount.status()["daemon"]["prefetch"]["arms"]
    return told


def stored(store: Store) -> Path:
    return Path(store.url.removeprefix("file://")) / profile_key(NAME)


def learn(mounts: Mounts, store: Store) -> Mount:
    """Boot once; returns the mount when the profile is in the store."""
    mount = mounts(store.url).start()
    boot(mount, touched())
    wait_for(stored(store).exists, "the profile in the store")
    return mount


def test_a_host_that_never_booted_an_image_replays_what_others_did(
    mounts: Mounts, store: Store
) -> None:
    first = learn(mounts, store)
    assert profiles(first, "list", first.mountpoint)[0]["image"] == NAME
    first.umount()

    second = mounts(store.url).start()
    with (second / NAME).open("rb"):
        wait_for(lambda: second.metrics()["ahead_chunks"] >= 16, "the stage without evidence")
        before = second.metrics()
        assert before["ahead_chunks"] == 16
        boot(second, touched()[:16])
        wait_for(lambda: second.metrics()["ahead_chunks"] >= 80, "the replay")
        assert second.metrics()["ahead_requests"] < 60  # merged
        boot(second, touched()[16:])
        after = second.metrics()
    assert after["l3_chunks"] == before["l3_chunks"] + 64
    assert after["miss_chunks"] == before["miss_chunks"]
    assert arms(second)["replay"]["accuracy"] == 1.0


def test_the_next_start_on_the_same_host_replays_with_the_store_away(
    mounts: Mounts, store: Store
) -> None:
    mount = learn(mounts, store)
    kept = profiles(mount, "show", mount.mountpoint, NAME)[0]
    assert kept["working_set_bytes"] == 80 * CHUNK
    mount.umount()
    stored(store).unlink()
    mount.start()
    assert profiles(mount, "show", mount.mountpoint, NAME)[0]["replayed_bytes"] == 80 * CHUNK


def test_the_boot_set_alone_is_warmed(mounts: Mounts, store: Store) -> None:
    first = learn(mounts, store)
    first.umount()
    second = mounts(store.url).start()
    done = second.command("warm", "--json", "--boot-set", second.mountpoint, NAME)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["fetched_chunks"] == 80
    before = second.metrics()
    boot(second, touched())
    assert second.metrics()["miss_chunks"] == before["miss_chunks"] == 0


def test_a_guest_that_moves_finds_on_the_other_host_what_it_has_used(
    mounts: Mounts, store: Store, tmp_path: Path
) -> None:
    source = mounts(store.url).start()
    file = tmp_path / "guest.profile"
    closed = source.command("handover", source.mountpoint, NAME, file)
    assert (closed.returncode, f"no guest has '{NAME}' open" in closed.stderr) == (3, True)
    with (source / NAME).open("rb"):
        boot(source, touched())
        boot(source, touched()[:10])  # hits, of the lane
        done = source.command("handover", "--json", source.mountpoint, NAME, file)
    assert json.loads(done.stdout)["chunks"] == 80
    keys = from_bytes(file.read_bytes()).sections["replay"]["key"].tolist()
    assert set(keys[:10]) == {key_of(chunk) for chunk in touched()[:10]}

    target = mounts(store.url).start()
    done = target.command("warm", "--json", "--profile", file, target.mountpoint, NAME)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["fetched_chunks"] == 80
    boot(target, touched())
    assert target.metrics()["miss_chunks"] == 0
    file.write_bytes(b"nothing of ours")
    refused = target.command("warm", "--profile", file, target.mountpoint, NAME)
    assert (refused.returncode, "no profile" in refused.stderr) == (5, True)
    both = target.command("warm", "--boot-set", "--profile", file, target.mountpoint, NAME)
    assert (both.returncode, "exclude each other" in both.stderr) == (2, True)


def test_profiles_are_moved_and_dropped(mounts: Mounts, store: Store, tmp_path: Path) -> None:
    mount = learn(mounts, store)
    file = tmp_path / "debian.profile"
    profiles(mount, "export", mount.mountpoint, NAME, file)
    assert from_bytes(file.read_bytes()).image == NAME
    profiles(mount, "import", mount.mountpoint, "another", file)
    assert {each["image"] for each in profiles(mount, "list", mount.mountpoint)} == {
        NAME,
        "another",
    }
    profiles(mount, "drop", mount.mountpoint, "another")
    gone = mount.command("profile", "show", mount.mountpoint, "another")
    assert gone.returncode != 0
    assert "no profile of 'another'" in gone.stderr
    file.write_bytes(b"nothing of ours")
    refused = mount.command("profile", "import", mount.mountpoint, NAME, file)
    assert refused.returncode != 0
    assert "no profile" in refused.stderr
    text = mount.command("profile", "list", mount.mountpoint)
    assert NAME in text.stdout


@pytest.mark.parametrize("what", ["garbage", "damaged", "foreign"])
def test_a_profile_that_is_none_costs_nothing(mounts: Mounts, store: Store, what: str) -> None:
    learn(mounts, store).umount()
    path = stored(store)
    if what == "garbage":
        path.write_bytes(b"\x00" * 5_000)
    elif what == "damaged":
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    else:
        sections = {
            name: rows.copy() for name, rows in from_bytes(path.read_bytes()).sections.items()
        }
        for rows in sections.values():
            rows["key"] += 1
        path.write_bytes(to_bytes(Profile(NAME, CHUNK, sections)))
    mount = mounts(store.url).start()
    boot(mount, touched()[:20])
    metrics = mount.metrics()
    assert metrics["ahead_chunks"] <= 2
    assert metrics["l3_chunks"] <= 22
    assert mount.is_mounted()


def test_a_poisoned_profile_costs_at_most_the_volume_cap(mounts: Mounts, store: Store) -> None:
    """It names every chunk of the image; the guest reads one and waits."""
    learn(mounts, store).umount()
    keys = [blake3(DATA[at : at + CHUNK]).digest() for at in range(0, len(DATA), CHUNK)]
    rows = np.zeros(len(keys), SECTIONS["replay"])
    rows["key"] = [int.from_bytes(key[:8], "little") for key in keys]
    rows["place"] = np.arange(len(keys))
    rows["which"] = 0xFFFF
    stored(store).write_bytes(to_bytes(Profile(NAME, CHUNK, {"replay": rows})))
    mount = mounts(store.url).start("prefetch_most=4MiB")
    path = mount / NAME
    with path.open("rb"):
        assert read_direct(path, 0, 4096) == DATA[:4096]
        # A stage of sixteen, of which the guest may have read the first by itself.
        wait_for(lambda: mount.metrics()["ahead_chunks"] >= 15, "the replay")
        assert mount.metrics()["ahead_chunks"] * CHUNK <= 4 * MIB
