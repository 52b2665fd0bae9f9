"""supervisor.sock: one JSON request line, one JSON answer line. Also the client's side of it.

Concurrency: the server's callbacks run in the supervisor's loop and never block on a client.
"""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

from mount_helper.event_loop import EventLoop
from mount_helper.rundir import SUPERVISOR_SOCKET

Message = dict[str, object]
LONGEST_LINE_BYTES = 65536
CLIENTS_LIMIT = 32


class ControlServer:
    """Listens in a run folder and hands each request to a function that returns the answer."""

    def __init__(
        self,
        folder: Path,
        loop: EventLoop,
        answer: Callable[[Message], Message],
    ) -> None:
        self._path = folder / SUPERVISOR_SOCKET
        self._loop = loop
        self._answer = answer
        self._clients: dict[socket.socket, bytes] = {}
        self._path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(os.fspath(self._path))
        self._path.chmod(0o600)
        self._listener.listen(CLIENTS_LIMIT)
        self._listener.setblocking(False)
        loop.watch(self._listener.fileno(), self._accept)

    def close(self) -> None:
        """Stop to listen and drop all clients."""
        for client in list(self._clients):
            self._drop(client)
        self._loop.unwatch(self._listener.fileno())
        self._listener.close()
        self._path.unlink(missing_ok=True)

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return
        if len(self._clients) >= CLIENTS_LIMIT:
            client.close()
            return
        client.setblocking(False)
        self._clients[client] = b""
        self._loop.watch(client.fileno(), lambda: self._receive(client))

    def _drop(self, client: socket.socket) -> None:
        self._loop.unwatch(client.fileno())
        del self._clients[client]
        client.close()

    def _receive(self, client: socket.socket) -> None:
        try:
            data = client.recv(LONGEST_LINE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        line = self._clients[client] + data
        if not data or len(line) > LONGEST_LINE_BYTES:
            self._drop(client)
            return
        self._clients[client] = line
        if b"\n" not in line:
            return
        self._clients[client] = b""
        try:
            request = json.loads(line)
            answer = self._answer(request if isinstance(request, dict) else {})
        except ValueError:
            answer = {"ok": False, "error": "the request is not a line of JSON"}
        try:
            client.sendall(json.dumps(answer).encode() + b"\n")  # fits an empty send buffer
        except OSError:
            self._drop(client)


def ask(folder: Path, request: Message, wait_s: float = 5.0) -> Message:
    """Ask the supervisor of a run folder.

    Raises:
        OSError: Nobody listens there, or there is no answer in time.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(wait_s)
        connection.connect(os.fspath(folder / SUPERVISOR_SOCKET))
        connection.sendall(json.dumps(request).encode() + b"\n")
        with connection.makefile("rb") as stream:
            line = stream.readline(LONGEST_LINE_BYTES)
    if not line:
        raise ConnectionError("the supervisor closed the connection")
    answer = json.loads(line)
    return answer if isinstance(answer, dict) else {}
