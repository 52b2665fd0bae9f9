import errno
import logging
import os
import subprocess
import sys
from pathlib import Path

import lmdb
import pytest

from cachefs.errors import CacheError
from cachefs.index.database import Database, open_database
from tests.stores import flip


@pytest.fixture
def paths(tmp_path: Path) -> tuple[Path, Path]:
    segments = tmp_path / "segments"
    segments.mkdir()
    return tmp_path / "index.lmdb", segments


def put(database: Database, key: bytes, value: bytes) -> None:
    with database.env.begin(write=True, db=database.meta) as txn:
        txn.put(key, value)


def get(database: Database, key: bytes) -> bytes | None:
    with database.env.begin(db=database.meta) as txn:
        found: bytes | None = txn.get(key)
    return found


def test_a_new_index_is_empty_and_an_old_one_is_kept(
    paths: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    database, is_new = open_database(*paths)
    assert is_new
    put(database, b"a", b"1")
    database.close()
    (paths[1] / "4096").write_text("slots")
    database, is_new = open_database(*paths)
    assert not is_new
    assert get(database, b"a") == b"1"
    assert get(database, b"b") is None
    database.close()
    assert (paths[1] / "4096").exists()
    assert not caplog.records


def test_segments_without_an_index_are_removed(paths: tuple[Path, Path]) -> None:
    (paths[1] / "4096").write_text("slots")
    database, is_new = open_database(*paths)
    assert is_new
    assert not list(paths[1].iterdir())
    database.close()


@pytest.mark.parametrize("damage", ["noise", "empty", "short", "flipped meta", "half"])
def test_a_damaged_index_costs_warmth_and_nothing_else(
    paths: tuple[Path, Path], damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    database, _ = open_database(*paths)
    with database.env.begin(write=True, db=database.meta) as txn:
        for number in range(2000):
            txn.put(b"%d" % number, bytes(1000))
    database.close()
    (paths[1] / "4096").write_text("slots")
    data = paths[0] / "data.mdb"
    match damage:
        case "noise":
            data.write_bytes(os.urandom(65536))
        case "empty":
            data.write_bytes(b"")
        case "short":
            os.truncate(data, 100)
        case "flipped meta":
            flip(data, 16)
            flip(data, 4096 + 16)
        case _:  # to map pages behind the end would end the daemon with SIGBUS
            os.truncate(data, data.stat().st_size // 2)
    # In a process of its own: what is tested may be killed.
    program = (
        "import sys, pathlib; from cachefs.index.database import open_database\n"
        "database, is_new = open_database(*map(pathlib.Path, sys.argv[1:]))\n"
        "with database.env.begin(db=database.meta) as txn: print(is_new, len(list(txn.cursor())))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, paths)],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, b"True 0\n"), done.stderr.decode()
    assert not (paths[1] / "4096").exists()


def test_what_was_lost_is_said(paths: tuple[Path, Path], caplog: pytest.LogCaptureFixture) -> None:
    open_database(*paths)[0].close()
    (paths[0] / "data.mdb").write_bytes(os.urandom(65536))
    open_database(*paths)[0].close()
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "L1 starts empty" in record.getMessage()


def test_a_disk_that_takes_nothing_is_an_error_of_the_cache(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="cannot make the index"):
        open_database(tmp_path / "nowhere" / "index.lmdb", tmp_path)


def test_what_says_nothing_of_the_index_removes_nothing(
    paths: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    database, _ = open_database(*paths)
    put(database, b"a", b"1")
    database.close()
    (paths[1] / "4096").write_text("slots")

    def refuse(*_: object, **__: object) -> lmdb.Environment:
        raise lmdb.Error(os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr(lmdb, "open", refuse)
        with pytest.raises(CacheError, match="Too many open files"):
            open_database(*paths)
    assert (paths[1] / "4096").exists()
    database, is_new = open_database(*paths)
    assert not is_new
    assert get(database, b"a") == b"1"
    database.close()
