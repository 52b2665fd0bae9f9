"""Connections straight to the server, for the one kind of request that has to be cheap.

urllib3 and botocore's session take up to twice the processor for a GET (docs/decisions/0033).
A server behind a proxy is left to them.
"""

from __future__ import annotations

import select
import socket
import ssl
import threading
import weakref
from collections.abc import Mapping

from cachefs.store.s3.reply import Reply


class DirectConnections:
    """Keeps up to `most` idle connections to one server. Safe for threads."""

    def __init__(
        self,
        address: tuple[str, int],
        host: str,
        tls: ssl.SSLContext | None,
        most: int,
        timeouts_s: tuple[float, float],
    ) -> None:
        """Prepare; nothing is connected yet.

        Args:
            address: Name and port of the server.
            host: The header Host.
            tls: None: plain HTTP.
            most: Idle ones that are kept; the last one used is the next.
            timeouts_s: To connect, and that a connection may be silent.
        """
        self._address = address
        self._first_lines = f"Host: {host}\r\nAccept-Encoding: identity\r\nUser-Agent: cachefs\r\n"
        self._tls = tls
        self._most = most
        self._connect_s, self._silence_s = timeouts_s
        self._idle: list[socket.socket] = []
        self._lock = threading.Lock()
        weakref.finalize(self, _close_all, self._idle)

    def get(self, path: str, headers: Mapping[str, str], give_up_s: float) -> DirectAnswer:
        """Send a GET and return its answer, whose body is unread; give it back or close it.

        `give_up_s`: when an answer is too late, on the clock of time.monotonic.

        Raises:
            OSError: the connection broke, was silent or could not be made.
        """
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        message = f"GET {path} HTTP/1.1\r\n{self._first_lines}{lines}\r\n".encode("latin-1")
        connection = self._take()
        try:
            connection.sendall(message)
            return DirectAnswer(self, connection, Reply(connection, give_up_s))
        except BaseException:
            connection.close()
            raise

    def keep(self, connection: socket.socket) -> None:
        """Take a connection that is ready for the next request."""
        with self._lock:
            if len(self._idle) < self._most:
                self._idle.append(connection)
                return
        connection.close()

    def _take(self) -> socket.socket:
        while True:
            with self._lock:
                if not self._idle:
                    break
                connection = self._idle.pop()
            if not _is_readable(connection):
                return connection
            connection.close()  # the server did, or says what nobody has asked for
        return self._connect()

    def _connect(self) -> socket.socket:
        try:
            connection = socket.create_connection(self._address, self._connect_s)
        except OSError as error:
            where = "{}:{}".format(*self._address)
            raise OSError(f"no connection to {where}: {error.strerror or error}") from error
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_hostname=self._address[0])
            connection.settimeout(self._silence_s)
        except BaseException:
            connection.close()
            raise
        return connection


class DirectAnswer:
    """An answer and its connection."""

    def __init__(
        self, connections: DirectConnections, connection: socket.socket, reply: Reply
    ) -> None:
        self._connections = connections
        self._connection = connection
        self._reply = reply
        self.status = reply.status
        self.headers = reply.headers
        self.read = reply.read

    def release_conn(self) -> None:
        """Let the connection be used again, if it can be."""
        if self._reply.is_reusable:
            self._connections.keep(self._connection)
        else:
            self._connection.close()

    def close(self) -> None:
        """Close the connection: there are bytes for nobody on it."""
        self._connection.close()


def _is_readable(connection: socket.socket) -> bool:
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))


def _close_all(connections: list[socket.socket]) -> None:
    for connection in connections:
        connection.close()
