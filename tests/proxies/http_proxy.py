"""A fault proxy that reads HTTP: one call a request, its name the request line."""

import contextlib
import re
import socket
import threading
from collections.abc import Iterator

from tests.proxies.faults import Fault
from tests.proxies.proxy import Answer, TcpProxy, flipped, receive_some

_HEAD_END = b"\r\n\r\n"
_ERROR = '<?xml version="1.0"?>\n<Error><Code>{code}</Code><Message>no</Message></Error>'


class HttpProxy(TcpProxy):
    """Before an HTTP server.

    `heads`: of all requests, in small letters. `most_at_once`: requests that were under way at the
    same time, at most, since somebody set it to 0.
    """

    def __init__(self, upstream: tuple[str, int]) -> None:
        self.heads: list[str] = []
        self.most_at_once = 0
        self._at_once = 0
        self._counting = threading.Lock()
        super().__init__(upstream)

    @property
    def endpoint(self) -> str:
        return f"http://{self.address[0]}:{self.address[1]}"

    def serve(self, client: socket.socket, server: socket.socket) -> None:
        """Pass requests and answers on, one after the other."""
        from_client, from_server = _Input(client), _Input(server)
        while True:
            head = from_client.head()
            call = head.split(b"\r\n", 1)[0].decode(errors="replace")
            self.heads.append(head.decode(errors="replace").lower())
            fault = self.script.next_fault(call)
            if re.search(rb"(?im)^expect: *100-continue", head):
                client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                head = re.sub(rb"(?im)^expect:.*\r\n", b"", head)
            body = from_client.body(head)
            with self._counted():
                if fault.kind in {"status", "error_body"}:
                    self._answer_in_its_place(client, call, fault)
                    continue
                server.sendall(head + body)
                self._pass_answer(client, from_server, call, fault)

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        with self._counting:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            yield
        finally:
            with self._counting:
                self._at_once -= 1

    def _pass_answer(
        self, client: socket.socket, from_server: "_Input", call: str, fault: Fault
    ) -> None:
        head = from_server.head()
        while head.startswith(b"HTTP/1.1 1"):
            head = from_server.head()
        has_body = not call.startswith("HEAD ") and head.split(b" ", 2)[1] != b"204"
        body = from_server.body(head) if has_body else b""
        if fault.kind == "flip":
            body = flipped(body)
        if fault.kind == "shorten":
            body = body[: len(body) // 2]
            head = _with_header(head, b"Content-Length", b"%d" % len(body))
        if fault.kind == "other_range":
            head = re.sub(rb"(?im)^(content-range: bytes )(\d+)", _next_number, head)
        Answer(self, client, fault, len(head) + len(body)).send(head + body)

    def _answer_in_its_place(self, client: socket.socket, call: str, fault: Fault) -> None:
        status = 200 if fault.kind == "error_body" else fault.status
        body = b"" if call.startswith("HEAD ") else _ERROR.format(code=fault.code).encode()
        head = f"HTTP/1.1 {status} Said\r\nContent-Type: application/xml\r\n"
        length = f"Content-Length: {len(body)}\r\n\r\n"
        Answer(self, client, fault, None).send((head + length).encode() + body)


class _Input:
    """What comes from one side, in heads and bodies."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._data = b""

    def head(self) -> bytes:
        """Return the next head, with the empty line at its end."""
        while _HEAD_END not in self._data:
            self._data += receive_some(self._connection)
        head, _, self._data = self._data.partition(_HEAD_END)
        return head + _HEAD_END

    def body(self, head: bytes) -> bytes:
        """Return the body that a head announces, as it is on the wire."""
        if re.search(rb"(?im)^transfer-encoding: *chunked", head):
            return self._chunks()
        found = re.search(rb"(?im)^content-length: *(\d+)", head)
        return self._take(int(found[1]) if found else 0)

    def _chunks(self) -> bytes:
        parts = []
        while True:
            line = self._line()
            parts += [line, self._take(int(line.split(b";")[0], 16) + 2)]
            if int(line.split(b";")[0], 16) == 0:
                return b"".join(parts)

    def _line(self) -> bytes:
        while b"\r\n" not in self._data:
            self._data += receive_some(self._connection)
        line, _, self._data = self._data.partition(b"\r\n")
        return line + b"\r\n"

    def _take(self, size_bytes: int) -> bytes:
        parts, missing = [self._data[:size_bytes]], size_bytes - len(self._data)
        self._data = self._data[size_bytes:]
        while missing > 0:
            part = receive_some(self._connection)
            parts.append(part[:missing])
            self._data = part[missing:]
            missing -= len(part)
        return b"".join(parts)


def _with_header(head: bytes, name: bytes, value: bytes) -> bytes:
    return re.sub(rb"(?im)^" + name + rb":.*\r\n", name + b": " + value + b"\r\n", head)


def _next_number(found: "re.Match[bytes]") -> bytes:
    return found[1] + b"%d" % (int(found[2]) + 1)
