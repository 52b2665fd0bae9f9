"""The store is damaged: a reader of a mount gets right bytes or EIO, and never anything else."""

import errno
import os
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from cachefs.store.store import Store
from tests.mount.mounts import Mounts, read_direct, wait_for
from tests.mount.samples import KIB, mixture, noise, store_path
from tests.stores import flip, import_bytes, new_store, pack_paths

pytestmark = pytest.mark.mount

CHUNK_BYTES = 16 * KIB
IMAGES = 48


@dataclass(frozen=True)
class Victim:
    """An image that shares nothing with the others."""

    name: str
    data: bytes
    pack: Path
    manifest: Path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return new_store(tmp_path)


@pytest.fixture
def victims(store: Store) -> list[Victim]:
    """Images with a pack and a manifest of their own each: frames that shrank, and plain ones."""
    found = []
    for number in range(IMAGES):
        name = f"image-{number:02}"
        make = noise if number % 2 else mixture
        data = b"".join(
            noise(64, 100 * number + part) + make(CHUNK_BYTES - 64, 100 * number + part)
            for part in range(5)
        )
        data += noise(77, number)
        before = set(pack_paths(store))
        import_bytes(store, data, name, CHUNK_BYTES)
        (pack,) = set(pack_paths(store)) - before
        manifest = store.image(name)[0].current.manifest
        found.append(Victim(name, data, pack, store_path(store) / "manifests" / manifest))
    return found


def outcome(path: Path, expected: bytes, step: int = CHUNK_BYTES) -> str:
    """Read an image piece by piece: `right`, or `EIO` if one of them cannot be had.

    Anything else fails the test.
    """
    seen = set()
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return "EIO"
    try:
        for at in range(0, len(expected), step):
            try:
                found = os.pread(fd, step, at)
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                seen.add("EIO")
            else:
                assert (found == expected[at : at + step]) is True, (path.name, at)
                seen.add("right")
    finally:
        os.close(fd)
    return "EIO" if "EIO" in seen else "right"


def test_one_flipped_bit_in_a_pack(victims: list[Victim], mounts: Mounts, store: Store) -> None:
    choice = random.Random(1)
    places: dict[str, int] = {}
    for number, victim in enumerate(victims):
        size = victim.pack.stat().st_size
        fixed = [0, 8, 12, 16, 17, 20, 24, size - 1, size - 9, size - 20, size - 60, size - 100]
        places[victim.name] = fixed[number] if number < len(fixed) else choice.randrange(size)
        flip(victim.pack, places[victim.name], number % 8)
    mount = mounts(store.url).start()
    outcomes = {v.name: outcome(mount / v.name, v.data) for v in victims}
    # Header, index and footer are not needed for a read; a frame is.
    assert outcomes["image-00"] == outcomes["image-07"] == "right"
    assert outcomes["image-04"] == "EIO", places
    assert sum(found == "EIO" for found in outcomes.values()) > IMAGES // 2
    assert mount.metrics()["l3_corrupt"] > 0
    assert "is corrupt" in mount.log()
    # A damaged chunk does not stay: what is right again in the store is right at the next read.
    for number, victim in enumerate(victims):
        flip(victim.pack, places[victim.name], number % 8)
    assert {outcome(mount / v.name, v.data) for v in victims} == {"right"}
    assert {outcome(mount / v.name, v.data) for v in victims} == {"right"}


def test_one_flipped_bit_in_a_manifest(victims: list[Victim], mounts: Mounts, store: Store) -> None:
    choice = random.Random(2)
    places: dict[str, int] = {}
    for number, victim in enumerate(victims):
        size = victim.manifest.stat().st_size
        fixed = [0, 8, 9, 12, 13, 16, 20, size - 1]
        places[victim.name] = fixed[number] if number < len(fixed) else choice.randrange(size)
        if number % 6:  # some stay as they are
            flip(victim.manifest, places[victim.name], number % 8)
    mount = mounts(store.url).start()
    for number, victim in enumerate(victims):
        expected = "EIO" if number % 6 else "right"
        assert outcome(mount / victim.name, victim.data) == expected, victim.name
    assert "manifest" in mount.log()
    for number, victim in enumerate(victims):
        if number % 6:
            flip(victim.manifest, places[victim.name], number % 8)
    assert {outcome(mount / v.name, v.data) for v in victims} == {"right"}


def test_packs_and_manifests_that_are_something_else(
    victims: list[Victim], mounts: Mounts, store: Store
) -> None:
    size = victims[0].pack.stat().st_size
    os.truncate(victims[0].pack, 0)
    os.truncate(victims[1].pack, 10)
    os.truncate(victims[2].pack, size // 2)
    os.truncate(victims[3].pack, victims[3].pack.stat().st_size - 1)  # the frames are all there
    victims[4].pack.write_bytes(b"a letter, and not a pack\n" * 4000)
    victims[5].pack.write_bytes(noise(size))
    shutil.copyfile(victims[30].pack, victims[6].pack)  # a good pack of another image
    victims[7].pack.unlink()
    victims[7].pack.mkdir()
    victims[8].pack.unlink()

    os.truncate(victims[9].manifest, 0)
    os.truncate(victims[10].manifest, victims[10].manifest.stat().st_size // 2)
    victims[11].manifest.write_bytes(b"a letter\n" * 400)
    shutil.copyfile(victims[30].manifest, victims[12].manifest)
    victims[13].manifest.unlink()
    later = bytearray(victims[14].manifest.read_bytes())
    later[8] = 2
    victims[14].manifest.write_bytes(later)

    mount = mounts(store.url).start("read_deadline=3")
    # One read each: what looks like an outage is tried again until the deadline.
    found = [outcome(mount / victim.name, victim.data, 1 << 20) for victim in victims]
    expected = ["EIO"] * 15 + ["right"] * (IMAGES - 15)
    expected[3] = "right"
    assert found == expected, mount.log()
    # The log says what is wrong, one line a second: the one who asks again sees it.
    future = f"manifest {victims[14].manifest.name[:16]} has format 2, this cachefs knows 1"
    for victim, message in (
        (victims[14], f"{future}: use a newer cachefs"),
        (victims[11], f"manifest {victims[11].manifest.name[:16]} is a foreign file"),
        (victims[12], f"manifest {victims[12].manifest.name[:16]} is corrupt"),
        (victims[5], f"in pack {victims[5].pack.name[:16]}"),
    ):

        def is_told(victim: Victim = victim, message: str = message) -> bool:
            assert outcome(mount / victim.name, victim.data) == "EIO"
            return message in mount.log()

        wait_for(is_told, message)


def test_a_flipped_bit_is_not_hidden_by_readers_in_between(
    victims: list[Victim], mounts: Mounts, store: Store
) -> None:
    """A chunk that came in right stays right, whatever happens to the store afterwards."""
    mount = mounts(store.url).start()
    half = victims[1].data[: 2 * CHUNK_BYTES]
    assert read_direct(mount / victims[1].name, 0, len(half)) == half
    victims[1].pack.write_bytes(bytes(victims[1].pack.stat().st_size))
    assert read_direct(mount / victims[1].name, 0, len(half)) == half
    assert outcome(mount / victims[1].name, victims[1].data) == "EIO"
