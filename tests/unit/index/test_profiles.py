from collections.abc import Iterator
from pathlib import Path

import pytest

from cachefs.index.database import Database, open_database
from cachefs.index.profiles import ProfileRows


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    (tmp_path / "segments").mkdir()
    database, _ = open_database(tmp_path / "index", tmp_path / "segments")
    yield database
    database.close()


def test_profiles_are_kept_by_name(database: Database) -> None:
    rows = ProfileRows(database)
    assert rows.get("a") is None
    rows.put("a", b"one", 1.0)
    rows.put("b" * 900, b"two", 2.0)
    rows.put("a", b"three", 3.0)
    assert rows.get("a") == b"three"
    assert rows.all() == [b"three", b"two"]
    assert rows.drop("a")
    assert not rows.drop("a")
    assert rows.all() == [b"two"]


def test_those_saved_longest_ago_go_first(database: Database) -> None:
    rows = ProfileRows(database, most_bytes=1_000)
    for number in range(10):
        rows.put(f"image{number}", bytes(300), float(number))
    assert [rows.get(f"image{number}") is not None for number in range(10)] == [False] * 7 + [
        True
    ] * 3
