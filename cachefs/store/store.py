"""The store as cachefs sees it: images, manifests and packs over a place for objects."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from blake3 import blake3

from cachefs.errors import (
    CorruptError,
    FormatError,
    NotFoundError,
    ObjectMissingError,
    UsageError,
)
from cachefs.model.image import Image, check_image_name
from cachefs.model.manifest import Manifest, decode_manifest, encode_manifest
from cachefs.store import layout
from cachefs.store.local import LocalObjects
from cachefs.store.objects import ObjectStore
from cachefs.store.pack import TAIL_BYTES, PackIndex, decode_index, index_bytes
from cachefs.store.s3_settings import S3Settings

STORE_FORMAT = 1


class ImageEntry(NamedTuple):
    """One image in a listing: its name, and an etag that changes with its record."""

    name: str
    etag: str


@dataclass(frozen=True, slots=True)
class Store:
    """An opened store. `identity` is made once with the store and tells stores apart."""

    objects: ObjectStore
    identity: str

    @property
    def url(self) -> str:
        """Where the store is, for messages and for a mount's source."""
        return self.objects.url

    def images(self, folder: str = "") -> Iterator[ImageEntry]:
        """Yield the images that there are, or those below a folder, in order of their keys."""
        below = f"{folder}/" if folder else ""
        for info in self.objects.list(f"{layout.IMAGES_PREFIX}{below}"):
            if info.key.endswith(".json"):
                yield ImageEntry(layout.image_name(info.key), info.etag)

    def has_image(self, name: str) -> bool:
        """Return whether there is an image of that name, whatever its record says."""
        try:
            self.objects.get(layout.image_key(check_image_name(name)))
        except ObjectMissingError:
            return False
        return True

    def image(self, name: str) -> tuple[Image, str]:
        """Return an image's record and its etag.

        Raises:
            NotFoundError: no image of that name.
            FormatError: the record cannot be understood.
        """
        key = layout.image_key(check_image_name(name))
        try:
            data, etag = self.objects.get(key)
        except ObjectMissingError as error:
            raise NotFoundError(f"no image '{name}' in {self.url}: see 'cachefs images'") from error
        image = Image.from_json(data, f"{self.url}/{key}")
        if image.name != name:
            raise FormatError(f"{self.url}/{key} is the record of another image, '{image.name}'")
        return image, etag

    def publish(self, image: Image, etag: str | None) -> str:
        """Write an image's record if it still has `etag` (None: if it is new).

        All that the record names has to be in the store before.

        Raises:
            ConflictError: somebody else changed it in the meantime.
        """
        return self.objects.put_if(layout.image_key(image.name), image.to_json(), etag)

    def remove_image(self, name: str, etag: str) -> None:
        """Remove an image's name; its chunks stay until they are collected."""
        self.objects.delete(layout.image_key(name), etag)

    def manifest(self, manifest_id: str) -> Manifest:
        """Return a manifest, checked against its id."""
        return decode_manifest(self.manifest_object(manifest_id), manifest_id)

    def manifest_object(self, manifest_id: str) -> bytes:
        """Return the bytes of a manifest's object, unchecked."""
        return self.objects.get(layout.manifest_key(manifest_id))[0]

    def put_manifest(self, manifest: Manifest) -> str:
        """Write a manifest and return its id."""
        data = encode_manifest(manifest)
        manifest_id = str(blake3(data).hexdigest())
        self.objects.put(layout.manifest_key(manifest_id), data)
        return manifest_id

    def pack_ids(self) -> Iterator[bytes]:
        """Yield the ids of all packs in the store."""
        for info in self.objects.list(layout.PACKS_PREFIX):
            pack_id = layout.pack_id(info.key)
            if pack_id is not None:  # else a foreign file: `verify` names it
                yield pack_id

    def pack(self, pack_id: bytes) -> bytes:
        """Return a whole pack, checked against its id.

        Raises:
            CorruptError: its content is not what its name says.
        """
        data, _ = self.objects.get(layout.pack_key(pack_id))
        if blake3(data).digest() != pack_id:
            raise CorruptError(
                f"pack {pack_id.hex()[:16]} in {self.url} is corrupt: "
                "its content does not match its id"
            )
        return data

    def put_pack(self, pack_id: bytes, data: bytes) -> None:
        """Write a pack."""
        self.objects.put(layout.pack_key(pack_id), data)

    def pack_index(self, pack_id: bytes) -> PackIndex:
        """Return a pack's index, (n,) INDEX_DTYPE, without reading its frames."""
        key = layout.pack_key(pack_id)
        tail, pack_bytes = self.objects.get_tail(key, TAIL_BYTES)
        needed_bytes = index_bytes(tail, pack_id)
        if needed_bytes > len(tail):
            tail, pack_bytes = self.objects.get_tail(key, needed_bytes)
        return decode_index(tail, pack_id, pack_bytes)

    def frames(self, pack_id: bytes, offset: int, size_bytes: int) -> bytes:
        """Return a range of a pack, unchecked: the caller verifies each chunk."""
        return self.objects.get_range(layout.pack_key(pack_id), offset, size_bytes)


def open_objects(url: str, s3: S3Settings | None = None) -> ObjectStore:
    """Return the place for objects that a URL names: `s3://bucket/prefix`, a path, `file:///path`.

    Args:
        url: The place.
        s3: How to reach S3; None: as the configuration file and the environment say.

    Raises:
        UsageError: a URL of a kind that cachefs does not know.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        return LocalObjects(Path(url).absolute())
    if scheme == "s3":
        from cachefs.store.s3.objects import open_s3  # noqa: PLC0415 - botocore takes 0.2 s

        return open_s3(url, s3 or configured_s3())
    if scheme != "file":
        raise UsageError(
            f"store '{url}': cachefs knows s3://bucket/prefix, file:///path and a plain path, "
            f"not {scheme}://"
        )
    if not rest.startswith("/"):
        raise UsageError(f"store '{url}': write file:///path, with an absolute path")
    return LocalObjects(Path(rest))


def configured_s3() -> S3Settings:
    """Return how the configuration file and the environment say that S3 is reached."""
    from cachefs.config import load_config  # noqa: PLC0415 - pydantic takes 0.1 s

    return S3Settings(**load_config(None, {}).s3.model_dump())


def open_store(url: str, s3: S3Settings | None = None) -> Store:
    """Return the store at `url`.

    Args:
        url: As for `open_objects`.
        s3: As for `open_objects`.

    Raises:
        NotFoundError: there is no store.
        FormatError: it is of a format that this version does not know.
    """
    objects = open_objects(url, s3)
    try:
        data, _ = objects.get(layout.DESCRIPTION_KEY)
    except ObjectMissingError as error:
        raise NotFoundError(
            f"{objects.url} is not a store: make one with 'cachefs init {url}'"
        ) from error
    return Store(objects, _identity(data, objects.url))


def create_store(url: str) -> Store:
    """Make a new store at `url` and return it.

    Raises:
        ConflictError: there is one already.
        UsageError: the folder or prefix holds something else.
    """
    objects = open_objects(url)
    objects.create(layout.FOLDERS)
    description = {
        "format": STORE_FORMAT,
        "hash": "blake3",
        "identity": uuid.uuid4().hex,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    objects.put_if(layout.DESCRIPTION_KEY, json.dumps(description, indent=1).encode(), None)
    return Store(objects, str(description["identity"]))


def _identity(description: bytes, url: str) -> str:
    try:
        record = json.loads(description)
        number = record["format"]
        if number != STORE_FORMAT or record["hash"] != "blake3":
            raise FormatError(
                f"{url} has format {number} ({record.get('hash')}), this cachefs knows "
                f"{STORE_FORMAT} (blake3): use a newer cachefs"
            )
        return str(record["identity"])
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{url}/cachefs.json does not describe a store: {error!r}") from error
