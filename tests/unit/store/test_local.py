import os
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from cachefs.errors import (
    ConflictError,
    CorruptError,
    ObjectMissingError,
    StoreUnavailableError,
    UsageError,
)
from cachefs.store.local import LocalObjects

MARK = "cachefs.json"


@pytest.fixture
def objects(tmp_path: Path) -> LocalObjects:
    made = LocalObjects(tmp_path / "store")
    made.create(("packs/", "images/"))
    made.put_if(MARK, b"{}", None)
    return made


def test_an_object_comes_back_whole_and_in_parts(objects: LocalObjects) -> None:
    objects.put("packs/a/b", b"0123456789")
    assert objects.get("packs/a/b")[0] == b"0123456789"
    assert objects.get_range("packs/a/b", 3, 4) == b"3456"
    assert objects.get_tail("packs/a/b", 3) == (b"789", 10)
    assert objects.get_tail("packs/a/b", 100) == (b"0123456789", 10)


def test_a_range_behind_the_end_is_a_cut_object(objects: LocalObjects) -> None:
    objects.put("packs/a", b"0123456789")
    with pytest.raises(CorruptError, match="cut short"):
        objects.get_range("packs/a", 8, 3)


def test_an_immutable_object_is_left_as_it_is(objects: LocalObjects) -> None:
    objects.put("packs/a", b"first")
    _, etag = objects.get("packs/a")
    objects.put("packs/a", b"second")
    assert objects.get("packs/a") == (b"first", etag)


def test_the_etag_changes_with_the_content(objects: LocalObjects) -> None:
    first = objects.put_if("images/a", b"same", None)
    assert objects.get("images/a")[1] == first
    second = objects.put_if("images/a", b"same", first)
    assert second != first
    assert [info.etag for info in objects.list("images/")] == [second]


def test_a_conditional_write_needs_the_right_etag(objects: LocalObjects) -> None:
    first = objects.put_if("images/a", b"1", None)
    objects.put_if("images/a", b"2", first)
    for stale in (None, first, "nonsense"):
        with pytest.raises(ConflictError, match="images/a"):
            objects.put_if("images/a", b"3", stale)
    with pytest.raises(ConflictError):
        objects.put_if("images/b", b"3", first)
    assert objects.get("images/a")[0] == b"2"


def test_a_conditional_removal_needs_the_right_etag(objects: LocalObjects) -> None:
    etag = objects.put_if("images/a", b"1", None)
    with pytest.raises(ConflictError):
        objects.delete("images/a", "nonsense")
    objects.delete("images/a", etag)
    with pytest.raises(ObjectMissingError):
        objects.get("images/a")


def test_removing_what_is_not_there_is_no_error(objects: LocalObjects) -> None:
    objects.delete("images/a")
    objects.delete("images/a", "nonsense")
    objects.delete("images/b/c")


def test_objects_are_listed_in_order_of_their_keys(objects: LocalObjects) -> None:
    keys = ["images/a", "images/a-b", "images/a/b", "images/a0", "images/b/c/d"]
    for key in keys:
        objects.put(key.replace("images/a/b", "images/x/b"), b"1")
    objects.put("images/a.json", b"1")
    found = [info.key for info in objects.list("images/")]
    assert found == sorted(found)
    assert len(found) == 6


def test_a_folder_sorts_as_its_objects_do(objects: LocalObjects) -> None:
    for key in ("images/a/z", "images/a-b", "images/a.json"):
        objects.put(key, b"1")
    found = [info.key for info in objects.list("images/")]
    assert found == ["images/a-b", "images/a.json", "images/a/z"]


def test_a_folder_without_objects_lists_nothing(objects: LocalObjects) -> None:
    assert list(objects.list("images/")) == []
    assert list(objects.list("images/a/b/")) == []


def test_temporary_files_are_not_listed(objects: LocalObjects) -> None:
    (objects.root / "packs" / ".tmp-1").write_bytes(b"half")
    assert list(objects.list("packs/")) == []


def test_a_failed_write_leaves_nothing(
    objects: LocalObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreUnavailableError, match="No space left"):
        objects.put("packs/a", b"1")
    assert list((objects.root / "packs").iterdir()) == []


def test_a_missing_object_is_no_outage(objects: LocalObjects) -> None:
    for key in ("packs/a", "packs/a/b", "images/a"):
        with pytest.raises(ObjectMissingError):
            objects.get(key)
        with pytest.raises(ObjectMissingError):
            objects.get_range(key, 0, 1)
        with pytest.raises(ObjectMissingError):
            objects.get_tail(key, 1)


def assert_unavailable(objects: LocalObjects, folder: str) -> None:
    """Every operation says that the store is not there, and none changes what is."""
    before = sorted(objects.root.rglob("*")) if objects.root.exists() else None
    key = f"{folder}/a"
    for call in (
        lambda: objects.get(key),
        lambda: objects.get_range(key, 0, 1),
        lambda: objects.get_tail(key, 1),
        lambda: objects.put(f"{folder}/new/new", b"1"),
        lambda: objects.put_if(key, b"1", None),
        lambda: objects.put_if(key, b"1", "etag"),
        lambda: objects.delete(key),
        lambda: objects.delete(key, "etag"),
        lambda: list(objects.list(f"{folder}/")),
        lambda: list(objects.list(f"{folder}/b/")),
    ):
        with pytest.raises(StoreUnavailableError):
            call()
    after = sorted(objects.root.rglob("*")) if objects.root.exists() else None
    assert after == before


def test_a_store_that_is_renamed_away_is_an_outage(objects: LocalObjects) -> None:
    objects.put("packs/a", b"1")
    away = objects.root.rename(objects.root.with_name("away"))
    assert_unavailable(objects, "packs")
    with pytest.raises(StoreUnavailableError):
        objects.get(MARK)
    away.rename(objects.root)
    assert objects.get("packs/a")[0] == b"1"


def test_an_empty_mount_point_is_an_outage(objects: LocalObjects) -> None:
    objects.root.rename(objects.root.with_name("away"))
    objects.root.mkdir()
    assert_unavailable(objects, "packs")
    assert list(objects.root.iterdir()) == []


def test_a_folder_of_the_store_that_is_renamed_away_is_an_outage(objects: LocalObjects) -> None:
    objects.put("packs/a", b"1")
    (objects.root / "packs").rename(objects.root / "away")
    assert_unavailable(objects, "packs")
    assert list(objects.list("images/")) == []


def test_a_folder_that_cannot_be_a_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("hello")
    with pytest.raises(UsageError, match=r"other files \(letter.txt\)"):
        LocalObjects(tmp_path).create(("packs/",))
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]
    with pytest.raises(StoreUnavailableError, match="cannot make a store"):
        LocalObjects(tmp_path / "letter.txt").create(("packs/",))


def count_up(root: Path, times: int) -> int:
    """Add one to a number so many times; returns how often somebody else was faster."""
    objects, lost, done = LocalObjects(root), 0, 0
    while done < times:
        data, etag = objects.get("images/count")
        try:
            objects.put_if("images/count", b"%d" % (int(data) + 1), etag)
            done += 1
        except ConflictError:
            lost += 1
    return lost


def test_of_many_threads_that_make_an_object_one_wins(objects: LocalObjects) -> None:
    start = threading.Barrier(8)

    def make(number: int) -> bool:
        start.wait()
        try:
            objects.put_if("images/a", b"%d" % number, None)
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        won = list(threads.map(make, range(8)))
    assert won.count(True) == 1
    assert int(objects.get("images/a")[0]) == won.index(True)


def test_no_update_of_many_processes_is_lost(objects: LocalObjects) -> None:
    objects.put_if("images/count", b"0", None)
    with ProcessPoolExecutor(4, mp_context=get_context("spawn")) as processes:
        lost = list(processes.map(count_up, [objects.root] * 4, [25] * 4))
    assert objects.get("images/count")[0] == b"100"
    assert all(count >= 0 for count in lost)
