import os
from dataclasses import replace
from pathlib import Path

import pytest

from cachefs.errors import NotFoundError, StoreUnavailableError
from cachefs.ingest.verify import VerifyReport, verify_store
from cachefs.model.image import Image
from cachefs.store.store import Store
from tests.stores import CHUNK, exported, flip, import_bytes, new_store, pack_paths


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two images in two packs that share four chunks, and one in a pack of its own."""
    made = new_store(tmp_path)
    shared = os.urandom(4 * CHUNK)
    import_bytes(made, shared + os.urandom(CHUNK), "one")
    import_bytes(made, shared + os.urandom(CHUNK), "two/of-them")
    import_bytes(made, os.urandom(3 * CHUNK), "three")
    return made


def only_problem(report: VerifyReport) -> tuple[str, str, tuple[str, ...], str]:
    assert len(report.problems) == 1, report.problems
    return report.problems[0]


def pack_of(store: Store, name: str, number: int = 0) -> Path:
    manifest = store.manifest(store.image(name)[0].current.manifest)
    wanted = manifest.packs[number].hex()
    return next(path for path in pack_paths(store) if path.name == wanted)


def test_a_sound_store_has_no_problems(store: Store) -> None:
    seen: list[tuple[int, int]] = []
    report = verify_store(store, None, lambda done, total: seen.append((done, total)))
    assert report.problems == []
    assert report.foreign == []
    assert (report.image_count, report.version_count) == (3, 3)
    assert (report.pack_count, report.chunk_count) == (3, 9)
    assert report.stored_bytes == sum(path.stat().st_size for path in pack_paths(store))
    assert seen[-1] == (report.stored_bytes, report.stored_bytes)


def test_one_image_is_checked_with_its_packs_alone(store: Store) -> None:
    report = verify_store(store, "two/of-them")
    assert (report.image_count, report.pack_count) == (1, 2)
    flip(pack_of(store, "three"), 100)
    assert verify_store(store, "two/of-them").problems == []
    assert len(verify_store(store, "three").problems) == 1
    with pytest.raises(NotFoundError):
        verify_store(store, "four")


def test_a_damaged_chunk_hits_the_images_that_have_it(store: Store) -> None:
    path = pack_of(store, "one")
    flip(path, 16 + 100)
    key, what, images, advice = only_problem(verify_store(store))
    assert key.endswith(path.name)
    assert "does not match its id; 1 of 5 chunks cannot be read" in what
    assert images == ("one version 1", "two/of-them version 1")
    assert advice == "move the pack away and import again what uses it: one, two/of-them"


def test_a_chunk_of_one_image_hits_no_other(store: Store) -> None:
    path = pack_of(store, "one")
    flip(path, 16 + 4 * (CHUNK + 8) + 100)
    assert only_problem(verify_store(store))[2] == ("one version 1",)


def test_the_advice_heals(store: Store, tmp_path: Path) -> None:
    data = exported(store, tmp_path, "three")
    path = pack_of(store, "three")
    flip(path, 100)
    path.rename(tmp_path / "away")
    assert "missing" in only_problem(verify_store(store))[1]
    import_bytes(store, data, "three")
    assert verify_store(store).problems == []


def test_a_damaged_index_hits_no_chunk(store: Store) -> None:
    path = pack_of(store, "three")
    flip(path, path.stat().st_size - 70)
    _, what, images, _ = only_problem(verify_store(store))
    assert "does not match its id" in what
    assert "its index does not match" in what
    assert images == ()


def test_a_damaged_header_is_found(store: Store) -> None:
    flip(pack_of(store, "three"), 0)
    assert "it does not start as one" in only_problem(verify_store(store))[1]


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\n"])
def test_a_foreign_file_as_a_pack_is_found(store: Store, content: bytes) -> None:
    pack_of(store, "three").write_bytes(content)
    _, what, images, _ = only_problem(verify_store(store))
    assert "foreign file" in what
    assert images == ("three version 1",)


def test_a_cut_pack_is_found(store: Store) -> None:
    path = pack_of(store, "three")
    os.truncate(path, CHUNK * 2)
    _, what, images, _ = only_problem(verify_store(store))
    assert "3 of 3 chunks" in what or "2 of 3 chunks" in what
    assert images == ("three version 1",)


def test_a_pack_that_no_image_uses_may_be_removed(store: Store) -> None:
    _, etag = store.image("three")
    path = pack_of(store, "three")
    store.remove_image("three", etag)
    assert verify_store(store).problems == []
    flip(path, 100)
    _, _, images, advice = only_problem(verify_store(store))
    assert (images, advice) == ((), "no image uses it: remove it")


def test_a_missing_pack_is_found(store: Store) -> None:
    pack_of(store, "three").unlink()
    assert only_problem(verify_store(store))[2] == ("three version 1",)


def test_damaged_and_missing_manifests_are_found(store: Store, root: Path) -> None:
    manifest = root / "manifests" / store.image("three")[0].current.manifest
    flip(manifest, manifest.stat().st_size - 1)
    _, _, images, advice = only_problem(verify_store(store))
    assert (images, advice) == (("three version 1",), "import 'three' again")
    manifest.unlink()
    assert only_problem(verify_store(store))[2] == ("three version 1",)


def test_a_manifest_that_no_image_uses_is_checked(store: Store, root: Path) -> None:
    image, etag = store.image("three")
    store.remove_image("three", etag)
    assert verify_store(store).problems == []
    flip(root / "manifests" / image.current.manifest, 40)
    assert only_problem(verify_store(store))[2:] == ((), "remove it")


def test_a_damaged_record_is_found(store: Store, root: Path) -> None:
    (root / "images" / "three.json").write_bytes(b"{")
    assert only_problem(verify_store(store))[2] == ("three",)


def test_a_record_with_other_sizes_than_its_manifest_is_found(store: Store) -> None:
    image, etag = store.image("three")
    wrong = replace(image.current, size_bytes=image.current.size_bytes + 1)
    store.publish(Image("three", (wrong,)), etag)
    assert "disagree about sizes" in only_problem(verify_store(store))[1]


def test_a_manifest_that_names_other_frames_than_the_index_is_found(store: Store) -> None:
    image, etag = store.image("three")
    manifest = store.manifest(image.current.manifest)
    records = manifest.records.copy()
    records["offset"][1] += 1
    wrong = store.put_manifest(replace(manifest, records=records))
    store.publish(Image("three", (replace(image.current, manifest=wrong),)), etag)
    _, what, images, _ = only_problem(verify_store(store))
    assert "does not have" in what
    assert images == ("three version 1",)


def test_an_image_that_is_also_a_folder_is_found(store: Store, root: Path) -> None:
    image, _ = store.image("three")
    (root / "images" / "three").mkdir()
    (root / "images" / "three" / "x.json").write_bytes(replace(image, name="three/x").to_json())
    assert "of an image and of a folder" in only_problem(verify_store(store))[1]


def test_foreign_files_are_named_and_are_no_damage(store: Store, root: Path) -> None:
    names = ["README", "packs/x", "packs/ab/y", "manifests/z", "images/notes.txt", "lost/found"]
    for name in names:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"hello")
    report = verify_store(store)
    assert sorted(report.foreign) == sorted(names)
    assert report.problems == []


def test_an_outage_is_no_damage(store: Store, root: Path) -> None:
    (root / "packs").rename(root.with_name("away"))
    with pytest.raises(StoreUnavailableError):
        verify_store(store)
