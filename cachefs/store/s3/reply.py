"""The answer to a GET, read from a socket: HTTP/1.1, no more of it than servers of objects use.

Knows nothing of S3, connections or retries. What is not understood is an error, and the connection
is not used again.
"""

from __future__ import annotations

import re
import socket
import time

_HEAD_BYTES = 64 * 1024
_HEAD_END = b"\r\n\r\n"
_RECEIVED_BYTES = 256 * 1024
"""At once, before the length of an answer is known: head and body of most come together."""

_LENGTH = re.compile(r"[0-9]{1,18}", re.ASCII)
_CHUNK_LENGTH = re.compile(rb"[0-9a-fA-F]{1,15}")


class ReplyError(OSError):
    """What came is no answer of HTTP, or it ended in its middle."""


class Reply:
    """The head of an answer, and its body as far as it is asked for."""

    def __init__(self, connection: socket.socket, give_up_s: float) -> None:
        """Read a head.

        Args:
            connection: Its timeout is how long the server may be silent.
            give_up_s: When a head, or a line between chunks, is too late: on the clock of
                time.monotonic. Who reads the body looks at the clock himself.

        Raises:
            OSError: the connection broke or was silent for too long, or what came is no head.
        """
        self._connection = connection
        self._give_up_s = give_up_s
        self._data = b""
        self.status = 100
        while 100 <= self.status < 200:  # that there is more to come
            self.status, self._version, self.headers = self._read_head()
        length = self.headers.get("content-length")
        if length is not None and not _LENGTH.fullmatch(length):
            raise ReplyError("the length of the answer makes no sense")
        self._is_chunked = self.headers.get("transfer-encoding", "").lower() == "chunked"
        self._left: int | None = None if length is None else int(length)
        """Of the body, or of its present chunk; None: until the connection is closed."""
        if self._is_chunked:
            self._left = 0
        self._is_begun = self._is_ended = False
        """Of a body in chunks."""

    @property
    def is_reusable(self) -> bool:
        """Whether all of it was read, and the server keeps the connection open."""
        is_read = self._left == 0 and not self._is_chunked and not self._data
        says = self.headers.get("connection", "").lower()
        return is_read and self._version == "HTTP/1.1" and says != "close"

    def read(self, amt: int) -> bytes:
        """Return the next bytes of the body, at most so many; none at its end.

        Raises:
            OSError: as above.
        """
        if self._is_chunked and not self._left and not self._is_ended:
            self._begin_chunk()
        if self._left is not None:
            amt = min(amt, self._left)
        if not amt:
            return b""
        data, self._data = self._data[:amt], self._data[amt:]
        data = data or self._receive(amt)
        if self._left is not None:
            self._left -= len(data)
        return data

    def _read_head(self) -> tuple[int, str, dict[str, str]]:
        while (end := self._data.find(_HEAD_END)) < 0:
            if len(self._data) > _HEAD_BYTES:
                raise ReplyError("the head of the answer has no end")
            self._receive_more()
        head, self._data = self._data[:end], self._data[end + len(_HEAD_END) :]
        first, *lines = head.decode("latin-1").split("\r\n")
        version, _, rest = first.partition(" ")
        status = rest[:3]
        if not version.startswith("HTTP/1.") or not status.isdecimal():
            raise ReplyError("what the server answered is not HTTP")
        headers: dict[str, str] = {}
        for line in lines:
            name, _, value = line.partition(":")
            name, value = name.lower(), value.strip()
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        return int(status), version, headers

    def _begin_chunk(self) -> None:
        if self._is_begun:
            self._line()  # that ends the chunk before
        self._is_begun = True
        size = self._line().partition(b";")[0].strip()
        if not _CHUNK_LENGTH.fullmatch(size):  # int() would take a sign, too
            raise ReplyError("the chunks of the answer make no sense")
        self._left = int(size, 16)
        if not self._left:
            self._is_ended = True
            while self._line():
                pass

    def _line(self) -> bytes:
        while (end := self._data.find(b"\r\n")) < 0:
            if len(self._data) > _HEAD_BYTES:
                raise ReplyError("a line of the answer has no end")
            self._receive_more()
        line, self._data = self._data[:end], self._data[end + 2 :]
        return line

    def _receive_more(self) -> None:
        if time.monotonic() > self._give_up_s:
            raise ReplyError("the answer takes too long")
        data = self._receive(_RECEIVED_BYTES)
        if not data:
            raise ReplyError("the connection was closed before an answer was complete")
        self._data += data

    def _receive(self, most_bytes: int) -> bytes:
        try:
            return self._connection.recv(most_bytes)
        except TimeoutError as error:
            raise ReplyError("Read timeout: the server is silent") from error
