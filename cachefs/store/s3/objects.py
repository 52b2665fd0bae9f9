"""Objects in a bucket. What holds for objects in a local folder holds here (tests/contract).

All methods may be called from several threads at once.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

from cachefs.errors import (
    ConflictError,
    CorruptError,
    ObjectMissingError,
    StoreUnavailableError,
    UsageError,
)
from cachefs.store.objects import ObjectInfo
from cachefs.store.s3.body import read_body
from cachefs.store.s3.conditional import Conditions
from cachefs.store.s3.connection import Connection
from cachefs.store.s3.faults import answered, code_in, is_error_body, mapped
from cachefs.store.s3.location import Location, parse_location
from cachefs.store.s3.range_reader import read_range
from cachefs.store.s3.retries import with_retries
from cachefs.store.s3.upload import Uploads
from cachefs.store.s3_settings import S3Settings

_MARK = "cachefs.json"
"""What tells a store from a prefix with nothing below it."""


def open_s3(url: str, settings: S3Settings) -> S3Objects:
    """Return the place that a URL s3://bucket/prefix names. Nothing is asked for yet.

    Raises:
        StoreRefusedError: there is no such profile.
        UsageError: the URL or a setting cannot be.
    """
    location = parse_location(url)
    with mapped(f"open {location.url}"):
        return S3Objects(location, Connection(settings, location.bucket))


class S3Objects:
    """Objects below a prefix of a bucket."""

    def __init__(self, location: Location, connection: Connection) -> None:
        self.url = location.url
        self._prefix = location.prefix
        self._bucket = location.bucket
        self._connection = connection
        self._retries = connection.settings.retries
        self._uploads = Uploads(connection)
        self._conditions = Conditions(
            location.url, location.prefix, self._uploads, self._delete_at_once
        )

    def create(self, folders: Iterable[str]) -> None:
        """See ObjectStore. A bucket has no folders to make, and is never made here."""
        found = next(self._rows(""), None)
        if found is not None and self._etag(_MARK) is None:
            raise UsageError(
                f"{self.url} holds other objects ({found.key}): give an empty prefix for the store"
            )

    def get(self, key: str) -> tuple[bytes, str]:
        """See ObjectStore."""
        what = f"read {self.url}/{key}"
        return with_retries(lambda: self._get(key, what), self._retries)

    def get_range(self, key: str, offset: int, size_bytes: int) -> bytes:
        """See ObjectStore."""
        if not size_bytes:
            return b""
        what = f"read {self.url}/{key}, bytes {offset} to {offset + size_bytes - 1}"
        where = self._prefix + key
        return with_retries(
            lambda: read_range(self._connection, where, offset, size_bytes, what), self._retries
        )

    def get_tail(self, key: str, size_bytes: int) -> tuple[bytes, int]:
        """See ObjectStore."""
        what = f"read the end of {self.url}/{key}"
        try:
            return with_retries(lambda: self._get_tail(key, size_bytes, what), self._retries)
        except CorruptError:  # 416: there are servers to which this is more than there is
            data = self.get(key)[0]
            return data[-size_bytes:] if size_bytes else b"", len(data)

    def put(self, key: str, data: bytes) -> None:
        """See ObjectStore."""
        what = f"write {self.url}/{key}"
        if len(data) > self._connection.settings.multipart_bytes:
            if self._etag(key) is None:
                with_retries(
                    lambda: self._uploads.put_in_parts(self._prefix + key, data, what),
                    self._retries,
                )
            return
        if not self._conditions.are_kept() and self._etag(key) is not None:
            return
        try:
            with_retries(
                lambda: self._uploads.put(self._prefix + key, data, what, {"IfNoneMatch": "*"}),
                self._retries,
            )
        except ConflictError:
            if self._etag(key) is None:  # somebody is writing it, and may fail
                raise

    def put_if(self, key: str, data: bytes, etag: str | None) -> str:
        """See ObjectStore."""
        what = f"write {self.url}/{key}"
        if not self._conditions.are_kept():
            return self._put_carefully(key, data, etag, what)
        condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
        tries = 0

        def put() -> str:
            nonlocal tries
            tries += 1
            return self._uploads.put(self._prefix + key, data, what, condition)

        try:
            return with_retries(put, self._retries)
        except (ConflictError, ObjectMissingError) as error:
            # An answer that got lost may have been a yes: then the object is ours already.
            if tries > 1 and (found := self._found(key)) and found[0] == data:
                return found[1]
            raise ConflictError(f"{key} was changed by somebody else: try again") from error

    def delete(self, key: str, etag: str | None = None) -> None:
        """See ObjectStore. Not all servers know conditions here: one may be lost to a race."""
        if etag is not None:
            found = self._etag(key)
            if found is None:
                return
            if found != etag:
                raise ConflictError(f"{key} was changed by somebody else: try again")
        with_retries(lambda: self._delete_at_once(self._prefix + key), self._retries)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See ObjectStore. All is read before the first is given: not all servers keep order.

        Raises:
            StoreUnavailableError: there is nothing, and no store: an outage, and not an empty list.
        """
        found = with_retries(lambda: sorted(self._rows(prefix)), self._retries)
        if not found and self._etag(_MARK) is None:
            raise StoreUnavailableError(f"cannot list {self.url}/{prefix}: there is no {_MARK}")
        yield from found

    def _get(self, key: str, what: str) -> tuple[bytes, str]:
        give_up_s = time.monotonic() + self._connection.settings.request_timeout_s
        with mapped(what):
            answer = self._connection.client.get_object(Bucket=self._bucket, Key=self._prefix + key)
            with answer["Body"] as body:
                length = answer.get("ContentLength")
                data = read_body(body, length, give_up_s, what)
        if is_error_body(data):
            raise answered(200, code_in(data), what)
        return data, str(answer["ETag"])

    def _get_tail(self, key: str, size_bytes: int, what: str) -> tuple[bytes, int]:
        give_up_s = time.monotonic() + self._connection.settings.request_timeout_s
        with mapped(what):
            answer = self._connection.client.get_object(
                Bucket=self._bucket, Key=self._prefix + key, Range=f"bytes=-{size_bytes}"
            )
            with answer["Body"] as body:
                length = answer.get("ContentLength")
                data = read_body(body, length, give_up_s, what)
        if is_error_body(data):
            raise answered(200, code_in(data), what)
        _, _, whole = answer.get("ContentRange", "").partition("/")
        if not whole:  # all of it came
            return data[-size_bytes:], len(data)
        if not whole.isdecimal() or len(data) != min(size_bytes, int(whole)):
            raise StoreUnavailableError(f"cannot {what}: the server answered with another range")
        return data, int(whole)

    def _put_carefully(self, key: str, data: bytes, etag: str | None, what: str) -> str:
        """Look, write, and look again: all that can be done where conditions are ignored."""
        if self._etag(key) != etag:
            raise ConflictError(f"{key} was changed by somebody else: try again")
        written = with_retries(
            lambda: self._uploads.put(self._prefix + key, data, what), self._retries
        )
        if self.get(key)[0] != data:
            raise ConflictError(f"{key} was changed by somebody else: try again")
        return written

    def _found(self, key: str) -> tuple[bytes, str] | None:
        try:
            return self.get(key)
        except ObjectMissingError:
            return None

    def _etag(self, key: str) -> str | None:
        """Return an object's etag, None if there is none."""
        what = f"look for {self.url}/{key}"

        def head() -> str | None:
            try:
                with mapped(what):
                    answer = self._connection.client.head_object(
                        Bucket=self._bucket, Key=self._prefix + key
                    )
            except ObjectMissingError:
                return None
            return str(answer["ETag"])

        return with_retries(head, self._retries)

    def _delete_at_once(self, key: str) -> None:
        try:
            with mapped(f"delete s3://{self._bucket}/{key}"):
                self._connection.client.delete_object(Bucket=self._bucket, Key=key)
        except ObjectMissingError:
            return  # some say so

    def _rows(self, prefix: str) -> Iterator[ObjectInfo]:
        below = self._prefix + prefix
        what = f"list {self.url}/{prefix}"
        request: dict[str, Any] = {"Bucket": self._bucket, "Prefix": below}
        while True:
            with mapped(what):
                page = self._connection.client.list_objects_v2(**request)
            if "IsTruncated" not in page:
                raise StoreUnavailableError(f"cannot {what}: the answer is no list")
            for row in page.get("Contents", []):
                if not row["Key"].endswith("/"):  # a folder that some tool made
                    key = row["Key"].removeprefix(self._prefix)
                    etag = row["ETag"].strip('"')  # some leave the quotes away here
                    yield ObjectInfo(key, row["Size"], f'"{etag}"')
            if not page["IsTruncated"]:
                return
            request["ContinuationToken"] = page["NextContinuationToken"]
