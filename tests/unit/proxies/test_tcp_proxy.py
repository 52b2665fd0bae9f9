"""The proxy that knows no protocol, before a server that answers each line in capitals."""

import socket
import socketserver
import threading
import time
from collections.abc import Iterator

import pytest

from tests.proxies.faults import Fault
from tests.proxies.proxy import TcpProxy, closing


class Shouting(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line.upper())


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True


@pytest.fixture
def proxy() -> Iterator[TcpProxy]:
    with Server(("127.0.0.1", 0), Shouting) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        host, port = server.server_address[:2]
        with closing(TcpProxy((str(host), int(port)))) as made:
            yield made
        server.shutdown()
        thread.join(10)


@pytest.fixture
def client(proxy: TcpProxy) -> Iterator[socket.socket]:
    with socket.create_connection(proxy.address, 1) as made:
        yield made


def ask(client: socket.socket, text: bytes = b"get a key\r\n") -> bytes:
    client.sendall(text)
    answer = b""
    while not answer.endswith(b"\n"):
        part = client.recv(1000)
        if not part:
            break
        answer += part
    return answer


def read_to_end(client: socket.socket) -> None:
    while client.recv(1000):
        pass


def answers_nothing(client: socket.socket) -> bool:
    """Reset or closed, as it happens."""
    try:
        return not ask(client)
    except ConnectionError:
        return True


def test_what_is_not_in_the_script_passes(proxy: TcpProxy, client: socket.socket) -> None:
    assert ask(client) == b"GET A KEY\r\n"
    assert proxy.script.calls == ["get a key"]


def test_the_call_that_is_meant_is_hit(proxy: TcpProxy, client: socket.socket) -> None:
    proxy.script.play(Fault(), Fault("flip"), matches=lambda call: call.startswith("get"))
    assert ask(client) == b"GET A KEY\r\n"
    assert ask(client, b"set\r\n") == b"SET\r\n"
    found = ask(client)
    assert sum(a != b for a, b in zip(found, b"GET A KEY\r\n", strict=True)) == 1
    assert ask(client) == b"GET A KEY\r\n"


def test_an_answer_is_late(proxy: TcpProxy, client: socket.socket) -> None:
    proxy.script.play(Fault(delay_s=0.3))
    begun_s = time.monotonic()
    assert ask(client) == b"GET A KEY\r\n"
    assert time.monotonic() - begun_s >= 0.3


def test_an_answer_breaks(proxy: TcpProxy, client: socket.socket) -> None:
    proxy.script.play(Fault("cut", after=0.5))
    assert ask(client) == b"GET A"
    with socket.create_connection(proxy.address, 1) as another:
        proxy.script.play(Fault("reset", after=0.5))
        another.sendall(b"get a key\r\n")
        with pytest.raises(ConnectionResetError):
            read_to_end(another)


def test_an_answer_never_comes(proxy: TcpProxy, client: socket.socket) -> None:
    proxy.script.play(Fault("hang", after=0.5))
    client.settimeout(0.3)
    client.sendall(b"get a key\r\n")
    assert client.recv(1000) == b"GET A"
    with pytest.raises(TimeoutError):
        client.recv(1000)


def test_the_server_goes_and_comes_back(proxy: TcpProxy, client: socket.socket) -> None:
    assert ask(client) == b"GET A KEY\r\n"
    proxy.go_down()
    assert answers_nothing(client)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(proxy.address, 1)
    proxy.go_up()
    with socket.create_connection(proxy.address, 1) as another:
        assert ask(another) == b"GET A KEY\r\n"
