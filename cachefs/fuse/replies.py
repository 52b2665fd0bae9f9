"""Answers to reads: where their bytes are put, and how they get to the kernel.

The kernel wants the answer through the open file of /dev/fuse that the read came by, so a read
knows its device. An answer that the kernel does not wait for any more (ENOENT: the reader was
killed, or the lane was faster) is no error; nor is one that comes after the unmount (ENODEV).

Concurrency: event loop only. What `buffer` returns is valid until the next call of it.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
import struct
from collections.abc import Sequence

from cachefs.units import MIB

logger = logging.getLogger(__name__)

_OUT_HEADER = struct.Struct("=IiQ")
"""fuse_out_header: length, error, unique."""
_DATA_AT = mmap.PAGESIZE
_HEADER_AT = _DATA_AT - _OUT_HEADER.size


class Replies:
    """Buffers for the bytes of reads: `buffer`, fill it, `answer`, with no await between."""

    def __init__(self) -> None:
        self.devices: Sequence[int] = ()
        """The open files of /dev/fuse; none until the supervisor has given them."""
        self._memory = mmap.mmap(-1, _DATA_AT + MIB)
        self._whole = memoryview(self._memory)
        self._payload = self._whole[_DATA_AT:]
        self._data: memoryview | None = None

    def buffer(self, size_bytes: int) -> memoryview:
        """Return a buffer of `size_bytes`, at most 1 MiB, to fill."""
        self._data = self._payload[:size_bytes]
        return self._data

    def answer(self, data: bytes | memoryview, unique: int, device: int) -> None:
        """Answer a read with `data`."""
        if data is not self._data:
            self.buffer(len(data))[:] = data
        self._tell_kernel(0, _DATA_AT + len(data), unique, device)

    def answer_error(self, number: int, unique: int, device: int) -> None:
        """Answer a read with an errno."""
        self._tell_kernel(-number, _DATA_AT, unique, device)

    def _tell_kernel(self, error: int, end: int, unique: int, device: int) -> None:
        _OUT_HEADER.pack_into(self._memory, _HEADER_AT, end - _HEADER_AT, error, unique)
        try:
            os.write(self.devices[device], self._whole[_HEADER_AT:end])
        except OSError as refusal:
            if refusal.errno in (errno.ENOENT, errno.ENODEV):
                return
            logger.warning("the kernel refuses the answer to a read: %s", refusal.strerror)
            if not error:
                self.answer_error(errno.EIO, unique, device)
