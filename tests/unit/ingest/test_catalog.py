import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import lmdb
import pytest

from cachefs.errors import CacheError
from cachefs.ingest.catalog import CATALOG_NAME, Catalog, PackContent, Place, open_catalog
from tests.stores import flip

PACKS = [bytes([number]) * 32 for number in range(4)]
CHUNKS = [bytes([number, 255]) * 16 for number in range(200)]


def content(pack: bytes, chunks: list[bytes]) -> PackContent:
    return PackContent(pack, [(chunk, 16 + row * 10, 10) for row, chunk in enumerate(chunks)])


def test_what_was_added_is_found(tmp_path: Path) -> None:
    with open_catalog(tmp_path, "store") as catalog:
        assert catalog.find(CHUNKS) == {}
        assert catalog.add([content(PACKS[0], CHUNKS[:5])])
        assert catalog.find(CHUNKS) == {
            chunk: Place(PACKS[0], 16 + row * 10, 10) for row, chunk in enumerate(CHUNKS[:5])
        }
        assert catalog.packs() == {PACKS[0]}


def test_it_is_there_the_next_time(tmp_path: Path) -> None:
    with open_catalog(tmp_path, "store") as catalog:
        catalog.add([content(PACKS[0], CHUNKS)])
    with open_catalog(tmp_path, "store") as catalog:
        assert len(catalog.find(CHUNKS)) == len(CHUNKS)


def test_a_pack_that_is_gone_is_never_found(tmp_path: Path) -> None:
    with open_catalog(tmp_path, "store") as catalog:
        catalog.add([content(PACKS[0], CHUNKS[:90]), content(PACKS[1], CHUNKS[60:])])
        assert {place.pack for place in catalog.find(CHUNKS).values()} == set(PACKS[:2])
        catalog.forget({PACKS[0]})
        found = catalog.find(CHUNKS)
        assert set(found) == set(CHUNKS[60:])
        assert {place.pack for place in found.values()} == {PACKS[1]}


def test_a_catalog_of_mostly_void_rows_starts_afresh(tmp_path: Path) -> None:
    with open_catalog(tmp_path, "store") as catalog:
        catalog.add([content(PACKS[0], CHUNKS), content(PACKS[1], CHUNKS[:5])])
        catalog.forget({PACKS[0]})
        assert catalog.packs() == set()  # so that the next refresh reads the other again
        assert catalog.find(CHUNKS) == {}
        catalog.add([content(PACKS[1], CHUNKS[:5])])
        assert len(catalog.find(CHUNKS)) == 5


def change(folder: Path) -> None:
    with open_catalog(folder, "store") as catalog:
        catalog.forget({PACKS[0]})
        catalog.add([content(PACKS[2], CHUNKS[:1])])


def test_an_open_twice_in_a_process_harms_nothing(tmp_path: Path) -> None:
    with open_catalog(tmp_path, "store") as catalog:
        catalog.add([content(PACKS[0], CHUNKS)])
        with pytest.raises(CacheError), open_catalog(tmp_path, "store"):
            pass
    with open_catalog(tmp_path, "store") as catalog:
        assert len(catalog.find(CHUNKS)) == len(CHUNKS)


def test_another_process_sees_what_is_added_and_forgotten(tmp_path: Path) -> None:
    with open_catalog(tmp_path, "store") as catalog:
        catalog.add([content(PACKS[0], CHUNKS[:50]), content(PACKS[1], CHUNKS[50:])])
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            process.submit(change, tmp_path).result()
        assert {place.pack for place in catalog.find(CHUNKS).values()} == {PACKS[1], PACKS[2]}


def test_the_catalog_of_another_store_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with open_catalog(tmp_path, "store") as catalog:
        catalog.add([content(PACKS[0], CHUNKS)])
    with open_catalog(tmp_path, "other") as catalog:
        assert catalog.find(CHUNKS) == {}
    assert "built again" in caplog.text


@pytest.mark.parametrize("damage", ["empty", "cut", "foreign", "header"])
def test_a_damaged_catalog_is_replaced(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    with open_catalog(tmp_path, "store") as catalog:
        catalog.add([content(PACKS[0], CHUNKS)])
    path = tmp_path / CATALOG_NAME
    if damage == "empty":
        os.truncate(path, 0)
    elif damage == "cut":
        os.truncate(path, path.stat().st_size // 8192 * 4096)
    elif damage == "foreign":
        path.write_bytes(b"letters" * 10_000)
    else:
        flip(path, 16)
        flip(path, 4096 + 16)
    with open_catalog(tmp_path, "store") as catalog:
        assert catalog.find(CHUNKS) == {}
        catalog.add([content(PACKS[0], CHUNKS)])
        assert len(catalog.find(CHUNKS)) == len(CHUNKS)
    assert ("built again" in caplog.text) == (damage != "empty")


def test_a_flipped_bit_in_a_row_makes_it_void(tmp_path: Path) -> None:
    with open_catalog(tmp_path, "store") as catalog:
        catalog.add([content(PACKS[0], CHUNKS[:1])])
    path = tmp_path / CATALOG_NAME
    data = path.read_bytes()
    row_at = data.index(PACKS[0] + (16).to_bytes(4, "little"))
    for offset in range(44):
        for bit in range(8):
            flip(path, row_at + offset, bit)
            with open_catalog(tmp_path, "store") as catalog:
                assert catalog.find(CHUNKS[:1]) == {}
            flip(path, row_at + offset, bit)
    with open_catalog(tmp_path, "store") as catalog:
        assert len(catalog.find(CHUNKS[:1])) == 1


def test_a_catalog_that_fails_finds_less_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def begin(self, **_: object) -> object:
            raise lmdb.DiskError("no space")

    with open_catalog(tmp_path, "store") as catalog:
        monkeypatch.setattr(catalog, "_env", Broken())
        assert catalog.find(CHUNKS) == {}
        assert not catalog.add([content(PACKS[0], CHUNKS)])
        monkeypatch.undo()
    assert caplog.text.count("less is deduplicated") == 1


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="--catalog-dir"), open_catalog(tmp_path / "file", "store"):
        pass


def test_it_can_be_deleted_while_it_is_used(tmp_path: Path) -> None:
    with open_catalog(tmp_path, "store") as catalog:
        (tmp_path / CATALOG_NAME).unlink()
        (tmp_path / f"{CATALOG_NAME}-lock").unlink()
        catalog.add([content(PACKS[0], CHUNKS)])
        assert len(catalog.find(CHUNKS)) == len(CHUNKS)


def test_a_catalog_that_is_closed_twice_is_fine(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / CATALOG_NAME, "store")
    catalog.close()
    catalog.close()
