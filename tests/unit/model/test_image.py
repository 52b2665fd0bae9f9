import json
from typing import Any

import pytest
from blake3 import blake3

from cachefs.errors import CorruptError, FormatError, UsageError
from cachefs.model.image import Image, ImageVersion, check_image_name

VERSION = ImageVersion(
    1, "ab" * 32, 10_000, 4096, 8192, 5000, "2026-01-02T03:04:05+00:00", {"a": "b"}
)
IMAGE = Image("debian/12", (VERSION,))


def test_a_record_comes_back_as_it_was() -> None:
    assert Image.from_json(IMAGE.to_json(), "here") == IMAGE


def test_the_newest_version_is_the_current_one() -> None:
    second = ImageVersion(2, "cd" * 32, 1, 4096, 0, 0, VERSION.created)
    assert IMAGE.with_version(second).current == second
    assert IMAGE.with_version(second).versions == (VERSION, second)


@pytest.mark.parametrize("name", ["a", "debian/12", "a b", "ü/ß", "x.json", "1", "a-b_c+d@e"])
def test_paths_can_name_images(name: str) -> None:
    assert check_image_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *("", "/", "/a", "a/", "a//b", ".", "..", "a/../b", ".hidden", "a/.b"),
        *("a\nb", "a\\b", "a\0b", "\udc80", "x.json/y", "x" * 201, "/".join(["abcdefgh"] * 200)),
    ],
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="image name"):
        check_image_name(name)


def test_a_later_format_asks_for_a_newer_cachefs() -> None:
    record = json.loads(IMAGE.to_json()) | {"format": 2}
    with pytest.raises(FormatError, match=r"format 2.*newer cachefs"):
        Image.from_json(json.dumps(record).encode(), "here")


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"[]", b"null", b"\xff", b'{"format": 1}', b"[" * 100_000, b'{"format": []}'],
)
def test_other_json_is_no_record(data: bytes) -> None:
    with pytest.raises(FormatError, match="here"):
        Image.from_json(data, "here")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("manifest", "ab" * 31),
        ("manifest", "zz" * 32),
        ("manifest", None),
        ("size_bytes", "10000"),
        ("size_bytes", -1),
        ("number", 0),
        ("number", True),
        ("chunk_bytes", 5000),
        ("created", "yesterday"),
        ("labels", {"a": 1}),
        ("labels", []),
        ("surplus", 1),
    ],
)
def test_a_record_with_a_wrong_value_is_refused(key: str, value: Any) -> None:
    record = json.loads(IMAGE.to_json())
    record["versions"][0][key] = value
    del record["check"]
    record["check"] = blake3(json.dumps(record, sort_keys=True).encode()).hexdigest()
    with pytest.raises(FormatError, match="not an image record"):
        Image.from_json(json.dumps(record).encode(), "here")


def test_a_record_that_was_changed_is_corrupt() -> None:
    data = IMAGE.to_json().replace(b'"size_bytes": 10000', b'"size_bytes": 10001')
    assert data != IMAGE.to_json()
    with pytest.raises(CorruptError, match="here is corrupt"):
        Image.from_json(data, "here")


@pytest.mark.parametrize("versions", [(), (VERSION, VERSION)])
def test_versions_are_numbered_upwards(versions: tuple[ImageVersion, ...]) -> None:
    with pytest.raises(FormatError, match="numbered"):
        Image.from_json(Image("a", versions).to_json(), "here")
