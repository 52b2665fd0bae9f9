"""Images: names, versions and what the store says of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from itertools import pairwise
from typing import Any, Literal, get_args

from blake3 import blake3

from cachefs.errors import CorruptError, FormatError, UsageError
from cachefs.model.chunk import ID_BYTES, check_chunk_bytes

IMAGE_FORMAT = 1
ON_OUTAGE_LABEL = "on_outage"
"""The label that says what reads of an image do while the store is away."""
OnOutage = Literal["fail", "hold"]
_MAX_NAME_BYTES = 900
"""Keys of S3 end at 1,024 bytes; the rest is for the store's prefix and ours."""
_MAX_COMPONENT_BYTES = 200
"""Keeps `<component>.json` and its temporary name within the 255 bytes of a file name."""
_NOT_A_RECORD = (ValueError, KeyError, TypeError, AttributeError, RecursionError, UsageError)
"""What JSON that is no image record leads to."""


@dataclass(frozen=True, slots=True)
class ImageVersion:
    """One immutable version of an image.

    `manifest` is the hex id of its manifest; `stored_bytes` is what its distinct frames take in
    the store, shared or not; `data_bytes` is what is not a zero chunk; `created` is ISO 8601 UTC.
    """

    number: int
    manifest: str
    size_bytes: int
    chunk_bytes: int
    data_bytes: int
    stored_bytes: int
    created: str
    labels: dict[str, str] = field(default_factory=dict)

    def holds(self, default: OnOutage) -> bool:
        """Whether reads of it wait until the store is back; a label that means nothing is none."""
        label = self.labels.get(ON_OUTAGE_LABEL)
        return (label if label in get_args(OnOutage) else default) == "hold"


@dataclass(frozen=True, slots=True)
class Image:
    """A name and its versions, the newest last. `current` is what a mount shows."""

    name: str
    versions: tuple[ImageVersion, ...]

    @property
    def current(self) -> ImageVersion:
        """The newest version."""
        return self.versions[-1]

    def with_version(self, version: ImageVersion) -> Image:
        """Return the image with one more version, which becomes the current one."""
        return replace(self, versions=(*self.versions, version))

    def to_json(self) -> bytes:
        """Return the image as the store keeps it."""
        record: dict[str, Any] = {
            "format": IMAGE_FORMAT,
            "name": self.name,
            "versions": [asdict(version) for version in self.versions],
        }
        record["check"] = _check_of(record)
        return json.dumps(record, indent=1, sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes, origin: str) -> Image:
        """Return the image that `data` describes; `origin` names it in errors.

        Raises:
            FormatError: it is no image record, or one of a format that this version does not know.
            CorruptError: it does not match its own check.
        """
        try:
            record = json.loads(data)
            if record["format"] != IMAGE_FORMAT:
                raise FormatError(
                    f"{origin} has format {record['format']}, this cachefs knows {IMAGE_FORMAT}: "
                    "use a newer cachefs"
                )
            if record.pop("check") != _check_of(record):
                raise CorruptError(f"{origin} is corrupt: it does not match its check")
            versions = tuple(_version(version) for version in record["versions"])
            image = cls(check_image_name(record["name"]), versions)
            _check_numbers(image)
        except _NOT_A_RECORD as error:
            raise FormatError(f"{origin} is not an image record: {error!r}") from error
        return image


def _check_of(record: dict[str, Any]) -> str:
    """Return the BLAKE3 of a record without its check: a flipped bit in a size must not show."""
    return str(blake3(json.dumps(record, sort_keys=True).encode()).hexdigest())


def _version(record: dict[str, Any]) -> ImageVersion:
    version = ImageVersion(**record)
    numbers = (version.number, version.size_bytes, version.data_bytes, version.stored_bytes)
    if any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError("a size or number is none")
    if len(bytes.fromhex(version.manifest)) != ID_BYTES:
        raise ValueError("a manifest id is none")
    check_chunk_bytes(version.chunk_bytes)
    datetime.fromisoformat(version.created)
    if any(type(value) is not str for value in version.labels.values()):
        raise ValueError("a label is no text")
    return version


def _check_numbers(image: Image) -> None:
    numbers = [version.number for version in image.versions]
    if not numbers or any(later <= earlier for earlier, later in pairwise([0, *numbers])):
        raise ValueError(f"its versions are numbered {numbers}")


def check_labels(labels: Mapping[str, str]) -> None:
    """Refuse a label that we know with a value that we don't.

    Raises:
        UsageError: the message says what it can be.
    """
    wanted = labels.get(ON_OUTAGE_LABEL)
    if wanted is not None and wanted not in get_args(OnOutage):
        raise UsageError(
            f"label {ON_OUTAGE_LABEL}={wanted}: it can be {' or '.join(get_args(OnOutage))}"
        )


def check_image_name(name: str) -> str:
    """Return `name` if it can name an image: components of a path, joined by `/`.

    Raises:
        UsageError: it can't; the message says why.
    """
    if not name.isprintable() or "\\" in name:
        raise UsageError(f"image name {name!r} has a backslash or what cannot be printed")
    if len(name.encode()) > _MAX_NAME_BYTES:
        raise UsageError(f"image name '{name[:40]}...' is longer than {_MAX_NAME_BYTES} bytes")
    components = name.split("/")
    for component in components:
        if component == "" or component.startswith("."):
            raise UsageError(
                f"image name '{name}': a part cannot be empty or start with a dot; "
                "write it as in debian/12"
            )
        if len(component.encode()) > _MAX_COMPONENT_BYTES:
            raise UsageError(
                f"image name '{name}': a part is longer than {_MAX_COMPONENT_BYTES} bytes"
            )
    if any(component.endswith(".json") for component in components[:-1]):
        raise UsageError(f"image name '{name}': a folder cannot end in .json")
    return name
