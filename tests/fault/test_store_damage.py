"""One bit of the store flips: verify finds it, and nobody gets a wrong byte."""

import os
import random
from pathlib import Path

import pytest

from cachefs.errors import CachefsError, CorruptError, FormatError
from cachefs.ingest.verify import verify_store
from cachefs.store.store import Store
from tests.stores import CHUNK, exported, flip, import_bytes, new_store

SEED = 7


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = new_store(tmp_path)
    text = b"".join(b"%d squared is %d\n" % (n, n * n) for n in range(3000))
    import_bytes(made, text + bytes(5 * CHUNK) + os.urandom(10 * CHUNK))
    return made


def objects_of(store: Store, kind: str) -> list[Path]:
    root = Path(store.url.removeprefix("file://")) / kind
    return [path for path in root.rglob("*") if path.is_file()]


@pytest.mark.parametrize("kind", ["packs", "manifests"])
def test_every_flipped_bit_is_found_and_no_wrong_byte_comes_out(
    store: Store, tmp_path: Path, kind: str
) -> None:
    data = exported(store, tmp_path)
    (path,) = objects_of(store, kind)
    size = path.stat().st_size
    chance = random.Random(SEED)
    borders = [0, 8, 9, 12, 15, 16, 17, 24, size - 1, size - 9, size - 13, size - 57, size - 100]
    places = [place for place in borders if place < size]
    for offset in [*places, *(chance.randrange(size) for _ in range(60))]:
        bit = chance.randrange(8)
        flip(path, offset, bit)
        assert len(verify_store(store).problems) == 1, (offset, bit)
        try:
            assert exported(store, tmp_path) == data
        except (CorruptError, FormatError):
            pass
        flip(path, offset, bit)
    assert verify_store(store).problems == []


@pytest.mark.parametrize("kind", ["packs", "manifests"])
def test_every_cut_is_found(store: Store, tmp_path: Path, kind: str) -> None:
    data = exported(store, tmp_path)
    (path,) = objects_of(store, kind)
    whole = path.read_bytes()
    chance = random.Random(SEED)
    for size in [0, 1, 15, 16, *(chance.randrange(len(whole)) for _ in range(20)), len(whole) - 1]:
        path.write_bytes(whole[:size])
        assert len(verify_store(store).problems) == 1, size
        try:
            assert exported(store, tmp_path) == data
        except (CorruptError, FormatError):
            pass


def test_a_flipped_bit_in_a_record_never_gives_a_wrong_image(store: Store, tmp_path: Path) -> None:
    data = exported(store, tmp_path)
    (path,) = objects_of(store, "images")
    for bit in range(path.stat().st_size * 8):
        flip(path, bit // 8, bit % 8)
        try:
            assert exported(store, tmp_path) == data
        except CachefsError:
            pass
        flip(path, bit // 8, bit % 8)
    assert exported(store, tmp_path) == data
