"""Replies to reads: where their bytes are put, and what pyfuse3 is given to send.

With an arena a reply is a reference to a buffer that the lane writes to the kernel. Small replies
are cheaper inline; and so is everything, when all buffers are taken.

Concurrency: event loop only. What `buffer` returns is valid until the next call of it, unless
`reply` has been given it.
"""

from __future__ import annotations

from cachefs.units import KIB, MIB
from mount_helper.arena import INLINE, REFERENCE, Arena

LEAST_ARENA_BYTES = 16 * KIB
"""Copying less than this through the socket costs less than the arena's book-keeping."""


class Replies:
    """Buffers for the bytes of reads: `buffer`, fill it, `reply`, with no await between."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._inline = memoryview(bytearray(REFERENCE.size + MIB))
        self._payload = self._inline[REFERENCE.size :]
        self._chosen = -1
        self._data: memoryview | None = None

    def buffer(self, size_bytes: int) -> memoryview:
        """Return a buffer of `size_bytes` to fill."""
        large = size_bytes >= LEAST_ARENA_BYTES
        self._chosen = self._arena.free_buffer() if large else -1
        whole = self._payload if self._chosen < 0 else self._arena.buffers[self._chosen]
        self._data = whole[:size_bytes]
        return self._data

    def reply(self, data: bytes | memoryview) -> bytes | memoryview:
        """Return what pyfuse3 has to send so that the lane answers a read with `data`."""
        if data is not self._data:
            self.buffer(len(data))[:] = data
        size_bytes, self._data = len(data), None
        cookie = self._arena.cookie
        if self._chosen < 0:
            REFERENCE.pack_into(self._inline, 0, cookie, INLINE, size_bytes)
            return self._inline[: REFERENCE.size + size_bytes]
        self._arena.take(self._chosen)
        return REFERENCE.pack(cookie, self._chosen, size_bytes)
