"""Connections of our own: used again where that is safe, and only there."""

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress

import pytest

from cachefs.store.s3.direct import DirectConnections
from cachefs.store.s3.reply import ReplyError

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n01234"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
MOST = 2


def in_time() -> float:
    return time.monotonic() + 10


class Played:
    """A server that sends the same pieces after each request; with `ends` it then closes."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = [OK]
        self.ends = False
        self.accepted = 0
        self.asked: list[bytes] = []
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._listener.getsockname()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        with suppress(OSError):  # it is closed
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.close_connections()
        for thread in self._threads:
            thread.join(10)

    def close_connections(self) -> None:
        for connection in self._open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.accepted += 1
                self._open.append(connection)
                self._threads.append(threading.Thread(target=self._serve, args=(connection,)))
                self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while request := connection.recv(65536):
                self.asked.append(request)
                for piece in self.pieces:
                    connection.sendall(piece)
                if self.ends:
                    return


class Slowly(list[bytes]):
    """The same piece again and again, never silent for as long as a connection may be."""

    def __init__(self, piece: bytes) -> None:
        super().__init__([piece] * 100)

    def __iter__(self) -> Iterator[bytes]:
        for piece in super().__iter__():
            time.sleep(0.05)
            yield piece


@pytest.fixture
def server() -> Iterator[Played]:
    with closing(Played()) as played:
        yield played


@pytest.fixture
def connections(server: Played) -> DirectConnections:
    return DirectConnections(server.address, "host", None, MOST, (5.0, 0.3))


def read_all(connections: DirectConnections, path: str = "/a") -> bytes:
    answer = connections.get(path, {"Range": "bytes=0-4"}, in_time())
    try:
        parts = []
        while part := answer.read(3):
            parts.append(part)
    except OSError:
        answer.close()
        raise
    answer.release_conn()
    return b"".join(parts)


def test_what_is_asked_for_and_answered(connections: DirectConnections, server: Played) -> None:
    assert read_all(connections, "/bucket/a%20b") == b"01234"
    [request] = server.asked
    head, _, rest = request.partition(b"\r\n")
    assert head == b"GET /bucket/a%20b HTTP/1.1"
    assert {b"Host: host", b"Range: bytes=0-4"} <= set(rest.split(b"\r\n"))
    assert request.endswith(b"\r\n\r\n")


def test_a_connection_is_used_again(connections: DirectConnections, server: Played) -> None:
    for _ in range(5):
        assert read_all(connections) == b"01234"
    assert server.accepted == 1


NOT_REUSABLE = {
    "the server says so": OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"),
    "HTTP/1.0": OK.replace(b"1.1", b"1.0"),
    "more than an answer": OK + b"HTTP/1.1",
    "chunks": CHUNKED + b"2\r\n01\r\n3;x=y\r\n234\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("said", NOT_REUSABLE.values(), ids=NOT_REUSABLE)
def test_a_connection_is_not_used_again(
    connections: DirectConnections, server: Played, said: bytes
) -> None:
    server.pieces = [said]
    for number in range(1, 4):
        assert read_all(connections) == b"01234"
        assert server.accepted == number


def test_one_that_was_not_read_to_its_end_is_not_used_again(
    connections: DirectConnections, server: Played
) -> None:
    answer = connections.get("/a", {}, in_time())
    assert answer.read(3) == b"012"
    answer.release_conn()
    assert read_all(connections) == b"01234"
    assert server.accepted == 2


def test_one_that_the_server_has_closed_is_replaced(
    connections: DirectConnections, server: Played
) -> None:
    server.ends = True
    for number in range(1, 4):
        assert read_all(connections) == b"01234"
        for thread in server._threads[1:]:
            thread.join(10)
        assert server.accepted == number


def test_only_so_many_are_kept(connections: DirectConnections, server: Played) -> None:
    count = MOST + 3
    answers = [connections.get("/a", {}, in_time()) for _ in range(count)]
    for answer in answers:
        assert answer.read(5) == b"01234"
        answer.release_conn()
    assert server.accepted == count
    answers = [connections.get("/a", {}, in_time()) for _ in range(count)]
    assert server.accepted == count + count - MOST
    for answer in answers:
        answer.close()


def test_threads_do_not_share_a_connection(connections: DirectConnections, server: Played) -> None:
    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(lambda _: read_all(connections), range(200))) == {b"01234"}


def test_an_answer_in_single_bytes(connections: DirectConnections, server: Played) -> None:
    early = b"HTTP/1.1 100 Continue\r\n\r\n"
    for said in (OK, early + OK, NOT_REUSABLE["chunks"]):
        server.pieces = [said[at : at + 1] for at in range(len(said))]
        assert read_all(connections) == b"01234"


def test_a_body_without_a_length_ends_with_the_connection(
    connections: DirectConnections, server: Played
) -> None:
    server.pieces, server.ends = [b"HTTP/1.1 200 OK\r\n\r\n01234"], True
    assert read_all(connections) == b"01234"
    assert read_all(connections) == b"01234"
    assert server.accepted == 2


BAD = {
    "nothing": (b"", "closed before"),
    "a part of a head": (b"HTTP/1.1 200 OK\r\nContent-", "closed before"),
    "no HTTP": (b"SSH-2.0-OpenSSH\r\n\r\n", "not HTTP"),
    "a status that is none": (b"HTTP/1.1 OK\r\n\r\n", "not HTTP"),
    "a head without an end": (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 20_000, "no end"),
    "chunks that are none": (CHUNKED + b"x\r\n", "chunks"),
    "a chunk of less than nothing": (CHUNKED + b"-5\r\n01234\r\n0\r\n\r\n", "chunks"),
    "a length that is none": (OK.replace(b"5", b"+5"), "length"),
    "a length of 5,000 digits": (OK.replace(b"5", b"5" * 5_000), "length"),
}


@pytest.mark.parametrize(("said", "message"), BAD.values(), ids=BAD)
def test_what_is_no_answer_is_an_error(
    connections: DirectConnections, server: Played, said: bytes, message: str
) -> None:
    server.pieces, server.ends = [said], True
    with pytest.raises((ReplyError, ConnectionResetError), match=f"{message}|reset"):
        read_all(connections)
    server.pieces, server.ends = [OK], False
    assert read_all(connections) == b"01234"


def test_a_silent_server_is_given_up(connections: DirectConnections, server: Played) -> None:
    server.pieces = [OK[:-1]]
    with pytest.raises(OSError, match="Read timeout"):
        read_all(connections)


@pytest.mark.parametrize("piece", [b"a", b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_a_server_that_never_comes_to_the_point_is_given_up(
    connections: DirectConnections, server: Played, piece: bytes
) -> None:
    server.pieces = Slowly(piece)
    with pytest.raises(ReplyError, match="too long"):
        connections.get("/a", {}, time.monotonic() + 0.5)


def test_a_server_that_is_not_there(server: Played) -> None:
    server.close()
    gone = DirectConnections(server.address, "host", None, MOST, (5.0, 0.3))
    with pytest.raises(OSError, match=rf"no connection to 127\.0\.0\.1:{server.address[1]}"):
        gone.get("/a", {}, in_time())
