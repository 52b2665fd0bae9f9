"""Images: names, versions and what the store says of them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from cachefs.errors import FormatError, UsageError

IMAGE_FORMAT = 1
_MAX_COMPONENT_BYTES = 200
"""Keeps `<component>.json` and its temporary name within the 255 bytes of a file name."""


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
        return json.dumps(record, indent=1, sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes, origin: str) -> Image:
        """Return the image that `data` describes; `origin` names it in errors.

        Raises:
            FormatError: it is no image record, or one of a format that this version does not know.
        """
        try:
            record = json.loads(data)
            if record["format"] != IMAGE_FORMAT:
                raise FormatError(
                    f"{origin} has format {record['format']}, this cachefs knows {IMAGE_FORMAT}: "
                    "use a newer cachefs"
                )
            versions = tuple(ImageVersion(**version) for version in record["versions"])
            image = cls(check_image_name(record["name"]), versions)
            image.current  # noqa: B018 - an image without a version is no image
        except (ValueError, KeyError, TypeError, IndexError, UsageError) as error:
            raise FormatError(f"{origin} is not an image record: {error!r}") from error
        return image


def check_image_name(name: str) -> str:
    """Return `name` if it can name an image: components of a path, joined by `/`.

    Raises:
        UsageError: it can't; the message says why.
    """
    components = name.split("/")
    for component in components:
        if component in {"", ".", ".."}:
            raise UsageError(
                f"image name '{name}': '{component}' cannot be a part of it; write it as in debian/12"
            )
        if len(component.encode()) > _MAX_COMPONENT_BYTES:
            raise UsageError(f"image name '{name}': a part is longer than {_MAX_COMPONENT_BYTES} bytes")
        if not component.isprintable() or "\\" in component:
            raise UsageError(f"image name {name!r} has a character that cannot be printed or a backslash")
    if any(component.endswith(".json") for component in components[:-1]):
        raise UsageError(f"image name '{name}': a folder cannot end in .json")
    return name
