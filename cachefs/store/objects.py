"""The interface that a place for objects has: a local folder, or a bucket on S3."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol


class ObjectInfo(NamedTuple):
    """One row of a listing. The etag changes whenever the object's content does."""

    key: str
    size_bytes: int
    etag: str


class ObjectStore(Protocol):
    """Named objects that are complete or absent.

    All methods raise StoreUnavailableError for an outage, ObjectMissingError only when the place
    answered and has no such object, and StoreRefusedError when it answered that we may not.
    """

    url: str

    def create(self, folders: Iterable[str]) -> None:
        """Get a place ready for a new store with these folders.

        Raises:
            UsageError: it holds something else.
        """
        ...

    def get(self, key: str) -> tuple[bytes, str]:
        """Return an object's bytes and its etag."""
        ...

    def get_range(self, key: str, offset: int, size_bytes: int) -> bytes:
        """Return exactly `size_bytes` of an object from `offset`.

        Raises:
            CorruptError: the object is shorter than that.
        """
        ...

    def get_tail(self, key: str, size_bytes: int) -> tuple[bytes, int]:
        """Return the last bytes of an object, at most `size_bytes`, and its whole size."""
        ...

    def put(self, key: str, data: bytes) -> None:
        """Write an immutable object; one that is there already is left as it is."""
        ...

    def put_if(self, key: str, data: bytes, etag: str | None) -> str:
        """Write an object if it still has `etag` (None: if there is none) and return the new etag.

        Raises:
            ConflictError: it has another one.
        """
        ...

    def delete(self, key: str, etag: str | None = None) -> None:
        """Remove an object, if it still has `etag` where one is given. A missing one is no error.

        Raises:
            ConflictError: it has another etag.
        """
        ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield all objects below `prefix` (a folder: it ends in `/`), in order of their keys."""
        ...
