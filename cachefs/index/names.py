"""Names as this host last saw them, so that a daemon that starts again knows what the kernel knows.

The kernel keeps inodes and open files across a death of the daemon. So every version that was ever
visible on this mount is written here before it becomes visible, and the list of images is kept for
a start while the store does not answer.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import NamedTuple

from cachefs.index.database import Database
from cachefs.model.chunk import chunk_id
from cachefs.model.image import Image, ImageVersion


class KnownImage(NamedTuple):
    """An image of the last listing; the etag tells whether the store's record is still that one."""

    image: Image
    etag: str


class Names:
    """The databases `images` and `versions`. All methods block briefly; they run in a thread."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def images(self) -> dict[str, KnownImage]:
        """Return the last listing by name."""
        with self._database.env.begin(db=self._database.images) as txn:
            rows = [json.loads(value) for _, value in txn.cursor()]
        images = (
            KnownImage(
                Image.from_json(row["image"].encode(), "the local list of images"), row["etag"]
            )
            for row in rows
        )
        return {known.image.name: known for known in images}

    def versions(self) -> dict[int, tuple[str, ImageVersion]]:
        """Return every version that was visible: inode -> (name, version)."""
        with self._database.env.begin(db=self._database.versions) as txn:
            rows = [(int.from_bytes(key, "big"), json.loads(value)) for key, value in txn.cursor()]
        return {inode: (row["name"], ImageVersion(**row["version"])) for inode, row in rows}

    def replace_images(self, images: dict[str, KnownImage]) -> None:
        """Make `images` the last listing."""
        with self._database.env.begin(write=True) as txn:
            txn.drop(self._database.images, delete=False)
            for name, known in images.items():
                row = {"image": known.image.to_json().decode(), "etag": known.etag}
                # LMDB bounds the length of keys, so the name itself cannot be one.
                txn.put(chunk_id(name.encode()), json.dumps(row).encode(), db=self._database.images)

    def add_versions(self, versions: dict[int, tuple[str, ImageVersion]]) -> None:
        """Remember versions that are about to become visible."""
        with self._database.env.begin(write=True, db=self._database.versions) as txn:
            for inode, (name, version) in versions.items():
                row = {"name": name, "version": asdict(version)}
                txn.put(inode.to_bytes(8, "big"), json.dumps(row).encode())

    def forget_versions(self, inodes: set[int]) -> None:
        """Forget versions that no kernel can know any more."""
        with self._database.env.begin(write=True, db=self._database.versions) as txn:
            for inode in inodes:
                txn.delete(inode.to_bytes(8, "big"))
