"""Range GETs: signed here, and sent on connections of our own.

A client's `get_object` costs 1.3 ms of processor for each request, most of it in Python
(docs/decisions/0030): for frames of 64 KiB that is more than the transfer, and this is a part of it
(0033). What comes back is believed only as far as it agrees with what was asked for.
"""

from __future__ import annotations

import re
import time
from typing import Any, NamedTuple
from urllib.parse import quote

from botocore.awsrequest import AWSRequest

from cachefs.errors import CachefsError, CorruptError, StoreUnavailableError
from cachefs.store.s3 import faults
from cachefs.store.s3.body import read_body
from cachefs.store.s3.connection import Connection

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_ERROR_BYTES = 4096


class Answer(NamedTuple):
    """The head of an answer, and its body, unread."""

    status: int
    headers: Any
    raw: Any

    @property
    def content_length(self) -> int | None:
        """How long the body is, if the server says so."""
        text = self.headers.get("content-length", "")
        return int(text) if text.isdecimal() else None


def read_range(connection: Connection, key: str, offset: int, size_bytes: int, what: str) -> bytes:
    """Return exactly `size_bytes` of an object from `offset`.

    Raises:
        CorruptError: the object is shorter.
        StoreUnavailableError: an outage, or an answer that is not what was asked for.
    """
    give_up_s = time.monotonic() + connection.settings.request_timeout_s
    with faults.mapped(what):
        answer = _send(connection, key, f"bytes={offset}-{offset + size_bytes - 1}", give_up_s)
        is_read = False
        try:
            if answer.status not in {200, 206}:
                raise _refused(connection, answer, what)
            skip_bytes = _bytes_to_skip(answer, offset, size_bytes, what)
            data = read_body(answer.raw, skip_bytes + size_bytes, give_up_s, what)
            is_read = answer.content_length == len(data)
        finally:
            _let_go(answer, is_read=is_read)
        return data[skip_bytes:] if skip_bytes else data


def _refused(connection: Connection, answer: Answer, what: str) -> CachefsError:
    """Return the error for an answer that is no success; whose clock is wrong is noted."""
    code = faults.code_in(answer.raw.read(_ERROR_BYTES))
    if code == faults.TOO_SKEWED:
        connection.signer.set_clock(answer.headers.get("date", ""))
    return faults.answered(answer.status, code, what)


def _bytes_to_skip(answer: Answer, offset: int, size_bytes: int, what: str) -> int:
    """Check the head of an answer; returns how much of its body lies before what was asked for."""
    named = answer.headers.get("content-range")
    if named is None:
        return _skip_in_whole(answer, offset, size_bytes, what)
    found = _CONTENT_RANGE.fullmatch(named.strip())
    if not found or int(found[1]) != offset or int(found[2]) >= offset + size_bytes:
        raise StoreUnavailableError(f"cannot {what}: the server answered with another range")
    if int(found[2]) < offset + size_bytes - 1:
        if found[3].isdecimal() and int(found[3]) >= offset + size_bytes:
            raise StoreUnavailableError(f"cannot {what}: the server answered with a part of it")
        raise _cut_short(what)
    if answer.content_length not in {None, size_bytes}:
        raise StoreUnavailableError(f"cannot {what}: the server answered with another length")
    return 0


def _skip_in_whole(answer: Answer, offset: int, size_bytes: int, what: str) -> int:
    """Some servers answer with the whole object, some with an error that they call a success."""
    length = answer.content_length
    if answer.headers.get("content-type", "").endswith("/xml") or answer.status == 206:
        body = answer.raw.read(_ERROR_BYTES)
        raise faults.answered(answer.status, faults.code_in(body) or "and no range", what)
    if length is not None and length < offset + size_bytes:
        if faults.is_error_body(body := answer.raw.read(_ERROR_BYTES)):
            raise faults.answered(answer.status, faults.code_in(body), what)
        raise _cut_short(what)
    return offset


def _cut_short(what: str) -> CorruptError:
    return CorruptError(f"cannot {what}: the object is cut short, it ends before that")


def _send(connection: Connection, key: str, byte_range: str, give_up_s: float) -> Answer:
    path = connection.bucket_path + quote(key, safe="/-_.~")
    headers = connection.signer.headers(connection.credentials(), path, byte_range)
    if connection.direct is None:
        return _send_through_proxy(connection, key, headers)
    answer = connection.direct.get(path, headers, give_up_s)
    return Answer(answer.status, answer.headers, answer)


def _send_through_proxy(connection: Connection, key: str, headers: dict[str, str]) -> Answer:
    url = connection.bucket_url + quote(key, safe="/-_.~")
    request = AWSRequest(method="GET", url=url, headers=headers, stream_output=True)
    response = connection.http.send(request.prepare())
    return Answer(response.status_code, response.headers, response.raw)


def _let_go(answer: Answer, *, is_read: bool) -> None:
    """Give the connection back, or close one that still has bytes for nobody on it."""
    if is_read:
        answer.raw.release_conn()
    else:
        answer.raw.close()
