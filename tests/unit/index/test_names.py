from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest

from cachefs.errors import CacheError
from cachefs.index.database import Database, open_database
from cachefs.index.names import KnownImage, Names
from cachefs.model.image import Image, ImageVersion


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    (tmp_path / "segments").mkdir()
    database, _ = open_database(tmp_path / "index.lmdb", tmp_path / "segments")
    yield database
    database.close()


def version(number: int) -> ImageVersion:
    return ImageVersion(
        number, f"{number:064x}", 8192, 4096, 8192, 100, "2024-01-01T00:00:00+00:00", {"os": "ü"}
    )


def image(name: str, *numbers: int) -> Image:
    return Image(name, tuple(version(number) for number in numbers))


def test_the_last_listing_comes_back(database: Database) -> None:
    names = Names(database)
    assert names.images() == {}
    long = "/".join(["ü" * 90] * 4)  # longer than a key of LMDB
    known = {name: KnownImage(image(name, 1, 2), f"etag of {name}") for name in ("a", "b/c", long)}
    names.replace_images(known)
    assert Names(database).images() == known
    names.replace_images({"a": known["a"]})
    assert Names(database).images() == {"a": known["a"]}
    names.replace_images({})
    assert names.images() == {}


def test_versions_are_added_and_forgotten(database: Database) -> None:
    names = Names(database)
    shown = {2**62 - 1: ("a", version(1)), 7: ("b/c", version(2))}
    names.add_versions(shown)
    names.add_versions({9: ("a", version(2))})
    assert Names(database).versions() == {**shown, 9: ("a", version(2))}
    names.forget_versions({7, 12345})
    assert set(names.versions()) == {2**62 - 1, 9}


def test_a_row_that_cannot_be_understood_is_left_out(database: Database) -> None:
    names = Names(database)
    names.replace_images({"a": KnownImage(image("a", 1), "e")})
    names.add_versions({7: ("a", version(1))})
    with database.env.begin(write=True) as txn:
        for row in (b"{", b"[]", b'{"image": "{}", "etag": "e"}', b"\xff", b'{"name": 1}'):
            txn.put(b"x" + row, row, db=database.images)
            txn.put(b"x" * 7 + row[:1], row, db=database.versions)
    assert set(names.images()) == {"a"}
    assert names.versions() == {7: ("a", version(1))}


def test_a_disk_that_takes_nothing_is_an_error_of_the_cache(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = Names(database)
    names.replace_images({"a": KnownImage(image("a", 1), "e")})

    def fail(*_: object) -> bytes:
        raise lmdb.DiskError("No space left on device")

    monkeypatch.setattr("cachefs.index.names.chunk_id", fail)
    with pytest.raises(CacheError, match=r"names of images.*No space left"):
        names.replace_images({"b": KnownImage(image("b", 1), "e")})
    assert set(names.images()) == {"a"}


def test_what_a_spare_database_takes_is_there_when_the_first_is_not(
    database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "spare").mkdir()
    spare, _ = open_database(tmp_path / "spare" / "index.lmdb", tmp_path / "spare")
    names = Names(database, spare)
    known = {"a": KnownImage(image("a", 1), "e")}
    names.replace_images(known)
    names.add_versions({7: ("a", version(1)), 8: ("a", version(2))})
    names.forget_versions({8})
    assert Names(spare).images() == known
    assert set(Names(spare).versions()) == {7}
    spare.close()
    names.add_versions({9: ("a", version(2))})  # the spare one is for nothing but a trouble
    assert set(names.versions()) == {7, 9}
    assert "spare" in caplog.text
