import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cachefs.errors import (
    ConflictError,
    CorruptError,
    FormatError,
    NotFoundError,
    ObjectMissingError,
    StoreUnavailableError,
    UsageError,
)
from cachefs.model.image import Image, ImageVersion
from cachefs.model.manifest import RECORD_DTYPE, Manifest, runs_of
from cachefs.store.layout import pack_id, pack_key
from cachefs.store.pack import TAIL_BYTES, PackWriter
from cachefs.store.store import Store, create_store, open_store
from tests.stores import new_store

VERSION = ImageVersion(1, "ab" * 32, 0, 4096, 0, 0, "2026-01-02T03:04:05+00:00")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return new_store(tmp_path)


def test_a_store_keeps_its_identity(store: Store, tmp_path: Path) -> None:
    assert open_store(store.url).identity == store.identity
    assert open_store(str(tmp_path / "store")).identity == store.identity
    assert create_store(str(tmp_path / "other")).identity != store.identity


def test_a_store_is_made_once(store: Store) -> None:
    with pytest.raises(ConflictError):
        create_store(store.url)
    assert open_store(store.url).identity == store.identity


def test_a_half_made_store_is_finished(tmp_path: Path) -> None:
    (tmp_path / "packs").mkdir()
    (tmp_path / "images").mkdir()
    assert list(create_store(str(tmp_path)).images()) == []


@pytest.mark.parametrize("url", ["s3://b", "http://x/y", "file://relative", "file://"])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(UsageError, match="store"):
        open_store(url)


def test_a_folder_without_a_store_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="cachefs init"):
        open_store(str(tmp_path))
    with pytest.raises(StoreUnavailableError):
        open_store(str(tmp_path / "nothing"))


@pytest.mark.parametrize(
    ("description", "message"),
    [
        (b"", "does not describe"),
        (b"[]", "does not describe"),
        (b"{}", "does not describe"),
        (json.dumps({"format": 2, "hash": "blake3", "identity": "x"}).encode(), "newer cachefs"),
        (json.dumps({"format": 1, "hash": "md5", "identity": "x"}).encode(), "newer cachefs"),
    ],
)
def test_a_store_of_another_format_is_refused(
    store: Store, tmp_path: Path, description: bytes, message: str
) -> None:
    (tmp_path / "store" / "cachefs.json").write_bytes(description)
    with pytest.raises(FormatError, match=message):
        open_store(store.url)


def test_images_come_back(store: Store) -> None:
    for name in ("debian/12", "alpine"):
        store.publish(Image(name, (VERSION,)), None)
    assert [entry.name for entry in store.images()] == ["alpine", "debian/12"]
    assert [entry.name for entry in store.images("debian")] == ["debian/12"]
    assert store.image("debian/12")[0] == Image("debian/12", (VERSION,))
    assert store.has_image("alpine")
    assert not store.has_image("debian")


def test_a_new_version_changes_the_etag_in_the_listing(store: Store) -> None:
    image = Image("a", (VERSION,))
    etag = store.publish(image, None)
    assert [entry.etag for entry in store.images()] == [etag]
    later = store.publish(image.with_version(replace(VERSION, number=2)), etag)
    assert [entry.etag for entry in store.images()] == [later]
    with pytest.raises(ConflictError):
        store.publish(image, etag)
    with pytest.raises(ConflictError):
        store.remove_image("a", etag)
    store.remove_image("a", later)
    assert list(store.images()) == []


def test_a_missing_image_is_named(store: Store) -> None:
    with pytest.raises(NotFoundError, match=r"no image 'debian' in .*cachefs images"):
        store.image("debian")


def test_the_record_of_another_image_is_refused(store: Store, tmp_path: Path) -> None:
    store.publish(Image("a", (VERSION,)), None)
    images = tmp_path / "store" / "images"
    (images / "b.json").write_bytes((images / "a.json").read_bytes())
    with pytest.raises(FormatError, match="another image, 'a'"):
        store.image("b")


def test_a_manifest_comes_back(store: Store) -> None:
    records = np.zeros(1, RECORD_DTYPE)
    records["frame_bytes"] = 5
    manifest = Manifest(100, 4096, runs_of(np.zeros(1, np.uint64)), (b"p" * 32,), records)
    found = store.manifest(store.put_manifest(manifest))
    assert found.records.tolist() == records.tolist()
    with pytest.raises(ObjectMissingError):
        store.manifest("ab" * 32)


def test_a_pack_comes_back(store: Store, tmp_path: Path) -> None:
    writer = PackWriter()
    for number in range(TAIL_BYTES // 40):  # the index is longer than the first guess
        writer.add(number.to_bytes(32, "big"), b"frame", 5)
    pack, data = writer.finish()
    store.put_pack(pack, data)
    assert list(store.pack_ids()) == [pack]
    assert store.pack(pack) == data
    assert store.frames(pack, 16, 10) == b"frameframe"
    assert len(store.pack_index(pack)) == TAIL_BYTES // 40
    path = tmp_path / "store" / pack_key(pack)
    path.write_bytes(data[:-1])
    with pytest.raises(CorruptError, match="does not match its id"):
        store.pack(pack)


def test_only_packs_are_listed_as_packs(store: Store, tmp_path: Path) -> None:
    name = "ab" * 32
    for key in ("packs/README", "packs/cd/" + name, "packs/ab/" + name[:-2], "packs/" + name):
        path = tmp_path / "store" / key
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
        assert pack_id(key) is None
    assert list(store.pack_ids()) == []
    assert pack_id(f"packs/ab/{name}") == bytes.fromhex(name)
    assert pack_id(f"packs/ab/{name.upper()}") is None
