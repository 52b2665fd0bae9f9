import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cachefs.errors import ConflictError, NotFoundError, UsageError
from cachefs.ingest import publish
from cachefs.ingest.publish import check_name_is_free, publish_version, rename_image
from cachefs.model.image import Image, ImageVersion
from cachefs.store.store import Store
from tests.stores import new_store

VERSION = ImageVersion(0, "ab" * 32, 0, 4096, 0, 0, "2026-01-02T03:04:05+00:00")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return new_store(tmp_path)


def test_versions_are_numbered_from_one(store: Store) -> None:
    assert [publish_version(store, "a/b", VERSION).number for _ in range(3)] == [1, 2, 3]
    assert [version.number for version in store.image("a/b")[0].versions] == [1, 2, 3]


def test_versions_that_come_at_once_are_all_there(store: Store) -> None:
    with ThreadPoolExecutor(8) as threads:
        done = threads.map(lambda _: publish_version(store, "a", VERSION).number, range(24))
        assert sorted(done) == list(range(1, 25))
    assert len(store.image("a")[0].versions) == 24


@pytest.mark.parametrize(("first", "second"), [("a", "a/b"), ("a/b", "a"), ("a/b", "a/b/c/d")])
def test_a_name_is_an_image_or_a_folder(store: Store, first: str, second: str) -> None:
    publish_version(store, first, VERSION)
    for call in (
        lambda: check_name_is_free(store, second),
        lambda: publish_version(store, second, VERSION),
        lambda: rename_image(store, first, second),
    ):
        with pytest.raises(ConflictError, match="take another name"):
            call()
    assert [entry.name for entry in store.images()] == [first]


def test_names_that_begin_alike_are_no_conflict(store: Store) -> None:
    for name in ("a", "ab", "b/a", "b/ab"):
        publish_version(store, name, VERSION)
    check_name_is_free(store, "b/abc")


def test_of_image_and_folder_that_come_at_once_not_both_stay(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both look before either has written; then each looks again."""
    both_looked = threading.Barrier(2)
    looked = threading.local()

    def check(store: Store, name: str) -> None:
        check_name_is_free(store, name)
        if not getattr(looked, "once", False):
            looked.once = True
            both_looked.wait()

    monkeypatch.setattr(publish, "check_name_is_free", check)

    def publish_one(name: str) -> bool:
        try:
            publish_version(store, name, VERSION)
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(2) as threads:
        won = list(threads.map(publish_one, ["a", "a/b"]))
    assert won.count(True) <= 1
    assert len(list(store.images())) == won.count(True)


def test_an_image_gets_another_name(store: Store) -> None:
    publish_version(store, "a", VERSION)
    publish_version(store, "a", VERSION)
    rename_image(store, "a", "b/c")
    assert [entry.name for entry in store.images()] == ["b/c"]
    assert len(store.image("b/c")[0].versions) == 2
    with pytest.raises(NotFoundError):
        rename_image(store, "a", "d")


def test_a_name_that_is_taken_is_not_given(store: Store) -> None:
    publish_version(store, "a", VERSION)
    publish_version(store, "b", VERSION)
    with pytest.raises(ConflictError, match="an image 'b' already"):
        rename_image(store, "a", "b")
    with pytest.raises(ConflictError, match="an image 'a' already"):
        rename_image(store, "a", "a")
    with pytest.raises(UsageError):
        rename_image(store, "a", "../b")
    assert [entry.name for entry in store.images()] == ["a", "b"]


def test_a_new_version_during_a_rename_is_not_lost(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_version(store, "a", VERSION)
    original = Store.publish

    def publish_both(self: Store, image: Image, etag: str | None) -> str:
        done = original(self, image, etag)
        if image.name == "b":
            publish_version(store, "a", VERSION)
        return done

    monkeypatch.setattr(Store, "publish", publish_both)
    with pytest.raises(ConflictError, match="new version just now"):
        rename_image(store, "a", "b")
    assert [entry.name for entry in store.images()] == ["a"]
    assert len(store.image("a")[0].versions) == 2


def test_endless_contention_ends_with_an_error(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(_self: Store, _image: Image, _etag: str | None) -> str:
        raise ConflictError("somebody else was faster")

    monkeypatch.setattr(Store, "publish", lose)
    with pytest.raises(ConflictError, match="changed all the time"):
        publish_version(store, "a", VERSION)
