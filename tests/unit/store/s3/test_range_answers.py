"""Answers to a range GET, byte for byte as servers have given them, from a socket."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from cachefs.config import S3Section
from cachefs.errors import CorruptError, StoreRefusedError, StoreUnavailableError
from cachefs.store.s3.objects import S3Objects, open_s3
from cachefs.store.s3_settings import S3Settings

DATA = b"0123456789" * 100
ASKED = DATA[100:120]
ERROR = b'<?xml version="1.0"?>\n<Error><Code>SlowDown</Code></Error>'


def answer(status: int, body: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Said", "Connection: close", f"Content-Length: {len(body)}"]
    lines += [*headers, "", ""]
    return "\r\n".join(lines).encode() + body


Serve = Callable[[bytes], S3Objects]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Makes a place whose server answers every request the same, and then closes."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    listener = socket.create_server(("127.0.0.1", 0))
    said = b""

    def run() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                connection.recv(65536)
                connection.sendall(said)
                connection.shutdown(socket.SHUT_WR)
                connection.settimeout(0.1)
                connection.recv(1)  # closed with bytes unread, it would be a reset

    thread = threading.Thread(target=run)
    thread.start()

    def make(message: bytes) -> S3Objects:
        nonlocal said
        said = message
        section = S3Section(endpoint=f"http://127.0.0.1:{listener.getsockname()[1]}", retries=0)
        return open_s3("s3://bucket/store", S3Settings(**section.model_dump()))

    yield make
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(10)


RIGHT = {
    "206": answer(206, ASKED, "Content-Range: bytes 100-119/1000"),
    "206 of an unknown whole": answer(206, ASKED, "Content-Range: bytes 100-119/*"),
    "200 that is a range": answer(200, ASKED, "Content-Range: bytes 100-119/1000"),
    "200 with the whole object": answer(200, DATA),
    "200 with an object that ends there": answer(200, DATA[:120]),
    "chunked": b"HTTP/1.1 206 Said\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n"
    b"Content-Range: bytes 100-119/1000\r\n\r\n14\r\n" + ASKED + b"\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("said", RIGHT.values(), ids=RIGHT)
def test_an_answer_that_holds_what_was_asked_for(serve: Serve, said: bytes) -> None:
    objects = serve(said)
    for _ in range(2):
        assert objects.get_range("packs/a", 100, 20) == ASKED


WRONG: dict[str, tuple[bytes, type[Exception], str]] = {
    "begins elsewhere": (
        answer(206, ASKED, "Content-Range: bytes 99-118/1000"),
        StoreUnavailableError,
        "another range",
    ),
    "ends elsewhere": (
        answer(206, ASKED + b"x", "Content-Range: bytes 100-120/1000"),
        StoreUnavailableError,
        "another range",
    ),
    "a part": (
        answer(206, ASKED[:5], "Content-Range: bytes 100-104/1000"),
        StoreUnavailableError,
        "a part of it",
    ),
    "the end of the object": (
        answer(206, ASKED[:5], "Content-Range: bytes 100-104/105"),
        CorruptError,
        "cut short",
    ),
    "a range that is no range": (
        answer(206, ASKED, "Content-Range: all of it"),
        StoreUnavailableError,
        "another range",
    ),
    "206 that names no range": (answer(206, ASKED), StoreUnavailableError, "no range"),
    "another length": (
        answer(206, ASKED + b"x", "Content-Range: bytes 100-119/1000"),
        StoreUnavailableError,
        "another length",
    ),
    "200 with a shorter object": (answer(200, DATA[:119]), CorruptError, "cut short"),
    "200 with an error": (answer(200, ERROR), StoreUnavailableError, "SlowDown"),
    "200 with an error, said so": (
        answer(200, ERROR + bytes(500), "Content-Type: application/xml"),
        StoreUnavailableError,
        "SlowDown",
    ),
    "a page of a proxy": (
        answer(502, b"<html>Bad Gateway</html>", "Content-Type: text/html"),
        StoreUnavailableError,
        "502",
    ),
    "not implemented": (answer(501, b"", ""), StoreRefusedError, "does not know"),
    "no HTTP": (b"-ERR unknown command\r\n", StoreUnavailableError, "read s3://"),
    "nothing": (b"", StoreUnavailableError, "read s3://"),
    "an endless head": (b"HTTP/1.1 206 Said\r\nA: " + b"a" * 200_000, StoreUnavailableError, "s3:"),
}


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_an_answer_that_does_not(serve: Serve, case: tuple[bytes, type[Exception], str]) -> None:
    said, expected, message = case
    with pytest.raises(expected, match=message):
        serve(said).get_range("packs/a", 100, 20)
