"""Names as this host last saw them, so that a daemon that starts again knows what the kernel knows.

The kernel keeps inodes and open files across a death of the daemon. So every version that was ever
visible on this mount is written here before it becomes visible, and the list of images is kept for
a start while the store does not answer.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, NamedTuple, TypeVar

import lmdb

from cachefs.errors import CacheError, FormatError
from cachefs.index.database import Database
from cachefs.model.chunk import chunk_id
from cachefs.model.image import Image, ImageVersion

logger = logging.getLogger(__name__)

T = TypeVar("T")


class KnownImage(NamedTuple):
    """An image of the last listing; the etag tells whether the store's record is still that one."""

    image: Image
    etag: str


class Names:
    """The databases `images` and `versions`. All methods block briefly; they run in a thread.

    Those that write raise CacheError if the disk takes nothing. What `spare` takes as well is there
    for a daemon that cannot open the cache's index.
    """

    def __init__(self, database: Database, spare: Database | None = None) -> None:
        self._database = database
        self._spare = None if spare is None else Names(spare)

    def images(self) -> dict[str, KnownImage]:
        """Return the last listing by name; a row that cannot be understood is left out."""
        with self._database.env.begin(db=self._database.images) as txn:
            rows = [_understood(value, _image) for _, value in txn.cursor()]
        return {known.image.name: known for known in rows if known is not None}

    def versions(self) -> dict[int, tuple[str, ImageVersion]]:
        """Return every version that was visible: inode -> (name, version)."""
        with self._database.env.begin(db=self._database.versions) as txn:
            rows = [
                (int.from_bytes(key, "big"), _understood(value, _version))
                for key, value in txn.cursor()
            ]
        return {inode: row for inode, row in rows if row is not None}

    def replace_images(self, images: dict[str, KnownImage]) -> None:
        """Make `images` the last listing."""
        self._write_spare(lambda spare: spare.replace_images(images))
        with self._writing() as txn:
            txn.drop(self._database.images, delete=False)
            for name, known in images.items():
                row = {"image": known.image.to_json().decode(), "etag": known.etag}
                # LMDB bounds the length of keys, so the name itself cannot be one.
                txn.put(chunk_id(name.encode()), json.dumps(row).encode(), db=self._database.images)

    def add_versions(self, versions: dict[int, tuple[str, ImageVersion]]) -> None:
        """Remember versions that are about to become visible."""
        self._write_spare(lambda spare: spare.add_versions(versions))
        with self._writing() as txn:
            for inode, (name, version) in versions.items():
                row = {"name": name, "version": asdict(version)}
                txn.put(
                    inode.to_bytes(8, "big"), json.dumps(row).encode(), db=self._database.versions
                )

    def forget_versions(self, inodes: set[int]) -> None:
        """Forget versions that no kernel can know any more."""
        self._write_spare(lambda spare: spare.forget_versions(inodes))
        with self._writing() as txn:
            for inode in inodes:
                txn.delete(inode.to_bytes(8, "big"), db=self._database.versions)

    def _write_spare(self, write: Callable[[Names], None]) -> None:
        if self._spare is not None:
            try:
                write(self._spare)
            except CacheError as error:  # it is for a trouble that there may never be
                logger.warning("the spare folder: %s", error)

    @contextmanager
    def _writing(self) -> Iterator[lmdb.Transaction]:
        try:
            with self._database.env.begin(write=True) as txn:
                yield txn
        except (lmdb.Error, OSError) as error:
            raise CacheError(f"cannot write the names of images to the index: {error}") from error


def _understood(value: bytes, read: Callable[[Any], T]) -> T | None:
    """Return what a row says, None if it is damaged or of another version of cachefs."""
    try:
        return read(json.loads(value))
    except (ValueError, KeyError, TypeError, FormatError) as error:
        logger.warning("a name in the index cannot be understood: %s", error)
        return None


def _image(row: dict[str, Any]) -> KnownImage:
    return KnownImage(
        Image.from_json(row["image"].encode(), "the local list of images"), row["etag"]
    )


def _version(row: dict[str, Any]) -> tuple[str, ImageVersion]:
    return row["name"], ImageVersion(**row["version"])
