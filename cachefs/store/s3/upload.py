"""Writes objects: in one request, or in parts where they are large."""

from __future__ import annotations

import hashlib
import logging
from base64 import b64encode
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from cachefs.errors import CachefsError, StoreUnavailableError
from cachefs.store.s3.connection import Connection
from cachefs.store.s3.faults import mapped
from cachefs.store.s3.retries import with_retries

_PARTS_IN_FLIGHT = 4
"""Of one object; an import writes four packs at once besides."""

_log = logging.getLogger(__name__)


class Uploads:
    """Puts objects, encrypted as the settings say."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        settings = connection.settings
        self._encryption: dict[str, Any] = {}
        if settings.sse:
            self._encryption["ServerSideEncryption"] = settings.sse
        if settings.sse_kms_key:
            self._encryption["SSEKMSKeyId"] = settings.sse_kms_key

    def put(
        self, key: str, data: bytes, what: str, conditions: Mapping[str, str] | None = None
    ) -> str:
        """Write an object in one request and return its etag. `conditions`: IfMatch and so on."""
        options: dict[str, Any] = {**self._encryption, **(conditions or {})}
        with mapped(what):
            answer = self._connection.client.put_object(
                Bucket=self._connection.bucket,
                Key=key,
                Body=data,
                ContentMD5=_md5(data),
                **options,
            )
        return _etag_of(answer, what)

    def put_in_parts(self, key: str, data: bytes, what: str) -> None:
        """Write an object in parts, each tried again alone; it is there when all are.

        If it cannot be written, the parts that are there are given up.
        """
        connection = self._connection
        client, bucket = connection.client, connection.bucket
        with mapped(what):
            answer = client.create_multipart_upload(Bucket=bucket, Key=key, **self._encryption)
        upload = answer["UploadId"]
        try:
            parts = self._put_parts(key, data, upload, what)
            with mapped(what):
                done = client.complete_multipart_upload(
                    Bucket=bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": parts}
                )
            _etag_of(done, what)  # some say 200, and in the body that it failed
        except BaseException:
            with suppress(CachefsError), mapped(f"give up a part of {key}"):
                client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload)
                _log.debug("gave up the parts of %s", key)
            raise

    def _put_parts(self, key: str, data: bytes, upload: str, what: str) -> list[Any]:
        connection = self._connection
        view, part_bytes = memoryview(data), connection.settings.part_bytes

        def put_part(number: int) -> dict[str, Any]:
            part = bytes(view[(number - 1) * part_bytes : number * part_bytes])

            def put() -> str:
                with mapped(what):
                    answer = connection.client.upload_part(
                        Bucket=connection.bucket,
                        Key=key,
                        UploadId=upload,
                        PartNumber=number,
                        Body=part,
                        ContentMD5=_md5(part),
                    )
                return _etag_of(answer, what)

            return {"ETag": with_retries(put, connection.settings.retries), "PartNumber": number}

        count = -(-len(data) // part_bytes)
        with ThreadPoolExecutor(_PARTS_IN_FLIGHT, "part") as threads:
            try:
                return list(threads.map(put_part, range(1, count + 1)))
            except BaseException:
                threads.shutdown(wait=True, cancel_futures=True)
                raise


def _etag_of(answer: Any, what: str) -> str:
    etag = answer.get("ETag")
    if not etag:
        raise StoreUnavailableError(f"cannot {what}: the server answered 200 without an etag")
    return str(etag)


def _md5(data: bytes) -> str:
    """Return what a server compares with what has arrived."""
    return b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
