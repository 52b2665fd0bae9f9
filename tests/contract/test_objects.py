"""What every place for objects does: a local folder, S3, and an S3 server that lacks conditions."""

import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cachefs.errors import ConflictError, CorruptError, ObjectMissingError, UsageError
from cachefs.store.local import LocalObjects
from cachefs.store.objects import ObjectStore
from cachefs.store.s3.objects import open_s3
from tests.s3.servers import ACCESS_KEY, SECRET_KEY, S3Server

MARK = "cachefs.json"
MIB = 1024 * 1024
FOLDERS = ("packs/", "images/")
KINDS = ("local", "s3", "s3 in parts", "s3 without conditions")
REAL_CONDITIONS = ("local", "s3")

Place = Callable[[], ObjectStore]


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Opens the same empty place, each time anew, as another process would."""
    if request.param == "local":
        return lambda: LocalObjects(tmp_path / "store")
    name = "rclone_server" if request.param == "s3 without conditions" else "s3_server"
    server: S3Server = request.getfixturevalue(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    parts = {"multipart_bytes": 5 * MIB, "part_bytes": 5 * MIB}
    settings = server.settings(**(parts if request.param == "s3 in parts" else {}))
    url = f"s3://{server.bucket}/{uuid.uuid4().hex}/store"
    return lambda: open_s3(url, settings)


@pytest.fixture
def objects(place: Place) -> ObjectStore:
    made = place()
    made.create(FOLDERS)
    made.put_if(MARK, b"{}", None)
    return made


def on(*kinds: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("place", kinds, indirect=True)


every_kind = on(*KINDS)


@every_kind
def test_an_object_comes_back_whole_and_in_parts(objects: ObjectStore) -> None:
    objects.put("packs/a/b", b"0123456789")
    assert objects.get("packs/a/b")[0] == b"0123456789"
    assert objects.get_range("packs/a/b", 0, 10) == b"0123456789"
    assert objects.get_range("packs/a/b", 3, 4) == b"3456"
    assert objects.get_range("packs/a/b", 9, 1) == b"9"
    assert objects.get_range("packs/a/b", 3, 0) == b""
    assert objects.get_tail("packs/a/b", 3) == (b"789", 10)
    assert objects.get_tail("packs/a/b", 100) == (b"0123456789", 10)


@every_kind
def test_an_empty_object_is_an_object(objects: ObjectStore) -> None:
    objects.put("packs/a", b"")
    assert objects.get("packs/a")[0] == b""
    assert objects.get_tail("packs/a", 5) == (b"", 0)


@every_kind
def test_a_large_object_comes_back(objects: ObjectStore) -> None:
    data = bytes(range(256)) * (41 * MIB // 1024) + b"end"  # two whole parts and a bit
    objects.put("packs/a", data)
    assert (objects.get("packs/a")[0] == data) is True
    at = 5 * MIB - 100
    assert (objects.get_range("packs/a", at, 4 * MIB) == data[at : at + 4 * MIB]) is True
    assert objects.get_tail("packs/a", 3) == (b"end", len(data))
    objects.put("packs/a", b"another")
    assert objects.get_tail("packs/a", 3) == (b"end", len(data))


@every_kind
def test_a_range_behind_the_end_is_a_cut_object(objects: ObjectStore) -> None:
    objects.put("packs/a", b"0123456789")
    for offset, size_bytes in ((8, 3), (10, 1), (500, 20)):
        with pytest.raises(CorruptError, match="cut short"):
            objects.get_range("packs/a", offset, size_bytes)


@every_kind
def test_an_immutable_object_is_left_as_it_is(objects: ObjectStore) -> None:
    objects.put("packs/a", b"first")
    _, etag = objects.get("packs/a")
    objects.put("packs/a", b"second")
    assert objects.get("packs/a") == (b"first", etag)


@every_kind
def test_the_etag_changes_with_the_content(objects: ObjectStore) -> None:
    first = objects.put_if("images/a", b"1", None)
    assert objects.get("images/a")[1] == first
    second = objects.put_if("images/a", b"2", first)
    assert second != first
    assert [info.etag for info in objects.list("images/")] == [second]


@every_kind
def test_a_conditional_write_needs_the_right_etag(objects: ObjectStore) -> None:
    first = objects.put_if("images/a", b"1", None)
    objects.put_if("images/a", b"2", first)
    for stale in (None, first, '"nonsense"'):
        with pytest.raises(ConflictError, match="images/a"):
            objects.put_if("images/a", b"3", stale)
    with pytest.raises(ConflictError):
        objects.put_if("images/b", b"3", first)
    assert objects.get("images/a")[0] == b"2"


@every_kind
def test_a_conditional_removal_needs_the_right_etag(objects: ObjectStore) -> None:
    etag = objects.put_if("images/a", b"1", None)
    with pytest.raises(ConflictError):
        objects.delete("images/a", '"nonsense"')
    objects.delete("images/a", etag)
    with pytest.raises(ObjectMissingError):
        objects.get("images/a")


@every_kind
def test_removing_what_is_not_there_is_no_error(objects: ObjectStore) -> None:
    objects.delete("images/a")
    objects.delete("images/a", '"nonsense"')
    objects.delete("images/b/c")


@every_kind
def test_objects_are_listed_in_order_of_their_keys(objects: ObjectStore) -> None:
    keys = ["images/a-b", "images/a.json", "images/a/z", "images/a0", "images/b/c/d"]
    for key in reversed(keys):
        objects.put(key, b"12")
    objects.put("packs/a", b"1")
    assert [(info.key, info.size_bytes) for info in objects.list("images/")] == [
        (key, 2) for key in keys
    ]
    assert [info.key for info in objects.list("images/a/")] == ["images/a/z"]
    assert [info.key for info in objects.list("")] == [MARK, *keys, "packs/a"]


@every_kind
def test_a_folder_without_objects_lists_nothing(objects: ObjectStore) -> None:
    assert list(objects.list("images/")) == []
    assert list(objects.list("images/a/b/")) == []


@every_kind
def test_a_missing_object_is_no_outage(objects: ObjectStore) -> None:
    for key in ("packs/a", "packs/a/b", "images/a"):
        with pytest.raises(ObjectMissingError):
            objects.get(key)
        with pytest.raises(ObjectMissingError):
            objects.get_range(key, 0, 1)
        with pytest.raises(ObjectMissingError):
            objects.get_tail(key, 1)


@every_kind
def test_a_place_that_holds_something_else_is_refused(place: Place, objects: ObjectStore) -> None:
    objects.put("packs/letter.txt", b"hello")
    objects.delete(MARK)
    if isinstance(objects, LocalObjects):
        (objects.root / "letter.txt").write_text("hello")
    with pytest.raises(UsageError, match=r"other (files|objects) \(.*letter.txt\)"):
        place().create(FOLDERS)


@every_kind
def test_a_store_is_got_ready_twice_and_stays(place: Place, objects: ObjectStore) -> None:
    place().create(FOLDERS)
    assert objects.get(MARK)[0] == b"{}"


@on(*REAL_CONDITIONS)
def test_of_many_that_make_an_object_one_wins(place: Place, objects: ObjectStore) -> None:
    start = threading.Barrier(8)

    def make(number: int) -> bool:
        opened = place()
        opened.get(MARK)
        start.wait()
        try:
            opened.put_if("images/a", b"%d" % number, None)
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert sorted(threads.map(make, range(8))) == [False] * 7 + [True]


@on(*REAL_CONDITIONS)
def test_no_change_of_many_writers_is_lost(place: Place, objects: ObjectStore) -> None:
    objects.put_if("images/count", b"0", None)

    def count_up(_: int) -> None:
        opened, done = place(), 0
        while done < 5:
            data, etag = opened.get("images/count")
            try:
                opened.put_if("images/count", b"%d" % (int(data) + 1), etag)
                done += 1
            except ConflictError:
                continue

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(count_up, range(4)))
    assert objects.get("images/count")[0] == b"20"
