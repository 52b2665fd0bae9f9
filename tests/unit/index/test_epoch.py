from collections.abc import Iterator
from pathlib import Path

import pytest

from cachefs.index.database import Database, open_database
from cachefs.index.epoch import Epoch


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    (tmp_path / "segments").mkdir()
    database, _ = open_database(tmp_path / "index.lmdb", tmp_path / "segments")
    yield database
    database.close()


def test_every_start_is_an_epoch(database: Database) -> None:
    for expected in (1, 2, 3):
        epoch = Epoch(database)
        assert epoch.now == expected
        epoch.close()


def test_after_a_clean_stop_nothing_is_suspect(database: Database) -> None:
    Epoch(database).close()
    epoch = Epoch(database)
    assert not epoch.unclean_start
    assert epoch.suspect_before == 0


def test_after_an_unclean_stop_all_that_is_older_is_suspect(database: Database) -> None:
    Epoch(database)
    epoch = Epoch(database)
    assert epoch.unclean_start
    assert epoch.suspect_before == epoch.now == 2


def test_suspicion_outlives_a_clean_stop(database: Database) -> None:
    Epoch(database)
    Epoch(database).close()
    later = Epoch(database)
    assert not later.unclean_start
    assert later.suspect_before == 2
    assert later.now == 3


def test_a_second_unclean_stop_makes_the_time_between_suspect_too(database: Database) -> None:
    Epoch(database)
    Epoch(database)
    assert Epoch(database).suspect_before == 3


def test_trust_lasts_but_not_beyond_an_unclean_stop(database: Database) -> None:
    Epoch(database)
    epoch = Epoch(database)
    epoch.trust_all()
    assert epoch.suspect_before == 0
    epoch.close()
    trusted = Epoch(database)
    assert trusted.suspect_before == 0
    trusted.trust_all()
    assert Epoch(database).suspect_before == 4
