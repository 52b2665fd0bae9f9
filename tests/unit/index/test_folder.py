import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cachefs.errors import CacheError, ConflictError, FormatError
from cachefs.index.folder import CACHE_FORMAT, cached_identity, open_folder

DESCRIPTION = "cachefs-cache.json"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "cache"


def opened_and_closed(path: Path, identity: str | None = "one") -> None:
    open_folder(path, identity, wait_s=0).close()


def test_a_new_folder_is_made_with_all_that_is_in_it(path: Path) -> None:
    assert cached_identity(path) is None
    folder = open_folder(path, "one", wait_s=0)
    assert folder.segments_path.is_dir()
    assert folder.manifests_path.is_dir()
    assert folder.index_path.parent == path
    assert cached_identity(path) == "one"
    assert path.stat().st_mode & 0o777 == 0o700  # plain bytes of images of others
    folder.close()
    opened_and_closed(path)


def test_a_second_daemon_is_told_who_holds_the_folder(path: Path) -> None:
    folder = open_folder(path, "one", wait_s=0)
    with pytest.raises(ConflictError, match=rf"{path} is in use by process {os.getpid()}:.*unmoun"):
        open_folder(path, "one", wait_s=0)
    folder.close()
    opened_and_closed(path)


def test_a_start_waits_for_a_daemon_that_is_just_ending(path: Path) -> None:
    folder = open_folder(path, "one", wait_s=0)
    ending = threading.Timer(0.2, folder.close)
    ending.start()
    started_s = time.monotonic()
    open_folder(path, "one", wait_s=10).close()
    assert time.monotonic() - started_s >= 0.15
    ending.join()


def test_the_lock_is_held_while_a_fetcher_lives(path: Path) -> None:
    folder = open_folder(path, "one", wait_s=0)
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[folder.lock_fd]
    ) as fetcher:
        folder.close()
        with pytest.raises(ConflictError):
            open_folder(path, "one", wait_s=0.1)
        fetcher.communicate(b"\n", timeout=60)
    opened_and_closed(path)


def test_an_ordinary_child_does_not_hold_the_lock(path: Path) -> None:
    folder = open_folder(path, "one", wait_s=0)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        folder.close()
        opened_and_closed(path)
        child.communicate(b"\n", timeout=60)


def test_a_folder_with_other_files_is_left_alone(path: Path) -> None:
    path.mkdir(parents=True)
    (path / "letters.txt").write_text("dear")
    with pytest.raises(FormatError, match=r"no cache folder \(it holds letters.txt\)"):
        open_folder(path, "one", wait_s=0)
    assert (path / "letters.txt").read_text() == "dear"
    assert not (path / "segments").exists()


@pytest.mark.parametrize("harmless", ["lost+found", "lock.tmp"])
def test_a_disk_of_its_own_and_an_interrupted_start_are_no_other_files(
    path: Path, harmless: str
) -> None:
    (path / harmless).mkdir(parents=True) if "lost" in harmless else path.mkdir(parents=True)
    if harmless == "lock.tmp":
        (path / harmless).write_text("{")
    opened_and_closed(path)
    assert cached_identity(path) == "one"


def test_the_folder_of_another_store_is_refused(path: Path) -> None:
    opened_and_closed(path)
    with pytest.raises(FormatError, match=r"belongs to another store.*--cache-dir"):
        open_folder(path, "two", wait_s=0)
    opened_and_closed(path)  # and the refused one holds no lock


def test_a_store_that_cannot_be_asked_is_believed_to_be_the_same(path: Path) -> None:
    with pytest.raises(CacheError, match="is new and the store cannot be asked"):
        open_folder(path, None, wait_s=0)
    opened_and_closed(path)
    opened_and_closed(path, None)


def test_a_folder_of_a_later_format_is_refused(path: Path) -> None:
    opened_and_closed(path)
    record = {"format": CACHE_FORMAT + 1, "store": "one"}
    (path / DESCRIPTION).write_text(json.dumps(record))
    with pytest.raises(FormatError, match=f"format {CACHE_FORMAT + 1}.*knows {CACHE_FORMAT}"):
        open_folder(path, "one", wait_s=0)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"format": 1}', "\udcff"])
def test_a_description_that_cannot_be_understood_is_named(path: Path, text: str) -> None:
    opened_and_closed(path)
    (path / DESCRIPTION).write_bytes(os.fsencode(text))
    assert cached_identity(path) is None
    with pytest.raises(FormatError, match=f"{DESCRIPTION} cannot be understood.*remove"):
        open_folder(path, "one", wait_s=0)


def test_a_file_in_place_of_the_folder_is_an_error_of_the_cache(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(CacheError, match=f"cannot use the cache folder {path}"):
            open_folder(path, "one", wait_s=0)
