"""A proxy before a server: passes connections on, and lets a script spoil answers.

`TcpProxy` knows no protocol: a call is what a client says after an answer, and an answer what comes
until the client speaks again. That fits every protocol of request and answer, as Redis'.
`HttpProxy` (http_proxy.py) reads requests and answers, so it can name calls and change headers.
"""

import contextlib
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from tests.proxies.faults import NO_FAULT, Fault, Script

_PIECE_BYTES = 64 * 1024
_LOOK_S = 0.05
_END_WAIT_S = 60.0
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: on, and no time


class EndedError(Exception):
    """The proxy, or this connection, is at its end."""


class TcpProxy:
    """Listens on a port of its own; runs until `close`.

    `bytes_per_s`: all answers together pass at most so fast, as over one link; None: as they come.
    """

    def __init__(self, upstream: tuple[str, int]) -> None:
        self.script = Script()
        self.bytes_per_s: float | None = None
        self._link_free_s = 0.0
        self.connections = 0
        self._upstream = upstream
        self._ending = threading.Event()
        self._threads: list[threading.Thread] = []
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        self.address = ("127.0.0.1", 0)
        self.go_up()

    def go_up(self) -> None:
        """Listen, on the same port as before."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(self.address)
        listener.listen(128)
        self.address = listener.getsockname()
        self._listener = listener
        self._start(lambda: self._accept(listener))

    def go_down(self) -> None:
        """Refuse connections, and reset those that there are: the server is gone."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._ending.set()
        self.go_down()
        for thread in self._threads:
            thread.join(_END_WAIT_S)
            assert not thread.is_alive(), "a thread of the proxy does not end"

    def serve(self, client: socket.socket, server: socket.socket) -> None:
        """Pass on until one side ends."""
        with selectors.DefaultSelector() as selector:
            selector.register(client, selectors.EVENT_READ)
            selector.register(server, selectors.EVENT_READ)
            answer = Answer(self, client, NO_FAULT, 0)
            asked = False
            while not self._ending.is_set():
                for key, _ in selector.select(_LOOK_S):
                    data = receive_some(key.fileobj)
                    if key.fileobj is client:
                        if not asked:
                            call = data.split(b"\r\n", 1)[0].decode(errors="replace")
                            answer = Answer(self, client, self.script.next_fault(call), None)
                        asked = True
                        server.sendall(data)
                    else:
                        asked = False
                        answer.send(data)

    def pause(self, wait_s: float) -> None:
        """Wait, or end with the proxy."""
        if self._ending.wait(wait_s):
            raise EndedError

    def pass_over_link(self, size_bytes: int) -> None:
        """Wait until the link has passed so many bytes."""
        if not self.bytes_per_s:
            return
        with self._lock:
            begin_s = max(time.monotonic(), self._link_free_s)
            self._link_free_s = begin_s + size_bytes / self.bytes_per_s
            wait_s = self._link_free_s - time.monotonic()
        self.pause(wait_s)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            self.connections += 1
            self._start(lambda client=client: self._serve(client))  # type: ignore[misc]

    def _serve(self, client: socket.socket) -> None:
        with client, self._known(client):
            try:
                server = socket.create_connection(self._upstream)
            except OSError:
                return
            with server, contextlib.suppress(OSError, EndedError):
                for end in (client, server):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.serve(client, server)

    @contextlib.contextmanager
    def _known(self, client: socket.socket) -> Iterator[None]:
        with self._lock:
            self._open.add(client)
        try:
            yield
        finally:
            with self._lock:
                self._open.discard(client)

    def _start(self, run: Callable[[], None]) -> None:
        thread = threading.Thread(target=run, daemon=True)
        self._threads.append(thread)
        thread.start()


class Answer:
    """One answer on its way to a client, and the fault that hits it.

    `size_bytes` is how long it will be; None: not known, so `after` counts from each piece.
    """

    def __init__(
        self, proxy: TcpProxy, client: socket.socket, fault: Fault, size_bytes: int | None
    ) -> None:
        self._proxy = proxy
        self._client = client
        self._fault = fault
        self._size_bytes = size_bytes
        self._sent_bytes = 0
        self._is_delayed = False

    def send(self, data: bytes) -> None:
        """Send a piece, as far as the fault lets it pass."""
        fault = self._fault
        if not self._is_delayed and fault.delay_s:
            self._is_delayed = True
            self._proxy.pause(fault.delay_s)
        if fault.kind not in {"reset", "cut", "hang"}:
            if fault.kind == "flip" and self._size_bytes is None:
                data = flipped(data)
            self._send_paced(data)
            return
        whole = len(data) if self._size_bytes is None else self._size_bytes
        left = min(int(whole * fault.after), whole - 1) - self._sent_bytes
        if left >= len(data):
            self._send_paced(data)
            return
        self._send_paced(data[: max(0, left)])
        self._happen()

    def _happen(self) -> None:
        if self._fault.kind == "hang":
            self._proxy.pause(3600)
        if self._fault.kind == "reset":
            self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        raise EndedError

    def _send_paced(self, data: bytes) -> None:
        for at in range(0, len(data), _PIECE_BYTES):
            piece = data[at : at + _PIECE_BYTES]
            self._proxy.pass_over_link(len(piece))
            begun_s = time.monotonic()
            self._client.sendall(piece)
            self._sent_bytes += len(piece)
            if self._fault.bytes_per_s:
                due_s = begun_s + len(piece) / self._fault.bytes_per_s
                self._proxy.pause(max(0.0, due_s - time.monotonic()))


def flipped(data: bytes) -> bytes:
    """Return data with one bit in the middle another."""
    if not data:
        return data
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def receive_some(connection: object) -> bytes:
    """Return the next bytes of a connection; raises EndedError at its end."""
    assert isinstance(connection, socket.socket)
    data = connection.recv(_PIECE_BYTES)
    if not data:
        raise EndedError
    return data


_Proxy = TypeVar("_Proxy", bound=TcpProxy)


@contextlib.contextmanager
def closing(proxy: _Proxy) -> Iterator[_Proxy]:
    """Close a proxy with the context."""
    try:
        yield proxy
    finally:
        proxy.close()
