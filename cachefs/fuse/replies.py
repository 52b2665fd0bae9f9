"""Replies to reads: where their bytes are put, and how they get to the kernel.

The lane names a read so that we can answer the kernel ourselves, through the open file of /dev/fuse
that the read came by: `mount_helper/lane.c` says the form. Then pyfuse3 has only a word to send,
which tells the lane that this read is answered. A read that is not named so, or that comes before
we have those files, is answered through the lane: a word, and the bytes.

An answer that the kernel does not wait for any more (ENOENT: the reader was killed, or the lane was
faster) is no error; nor is one that comes after the unmount (ENODEV).

Concurrency: event loop only. What `buffer` returns is valid until the next call of it, unless
`reply` has been given it.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
from collections.abc import Sequence
from typing import NamedTuple

from cachefs.units import MIB

OFFSET_BITS = 48
_OFFSET_MASK = (1 << OFFSET_BITS) - 1
_SIZE_BITS, _DEVICE_BITS = 21, 4
_SIZE_MASK, _DEVICE_MASK = (1 << _SIZE_BITS) - 1, (1 << _DEVICE_BITS) - 1
_GENERATION_AT = _SIZE_BITS + _DEVICE_BITS
_GENERATION_BITS = 32 - _GENERATION_AT

_OUT_HEADER = struct.Struct("=IiQ")
"""fuse_out_header: length, error, unique."""
_BYTES_FOLLOW = (0).to_bytes(8, "little")
ANSWERED = (1).to_bytes(8, "little")
_DATA_AT = mmap.PAGESIZE
_HEADER_AT, _WORD_AT = _DATA_AT - _OUT_HEADER.size, _DATA_AT - len(ANSWERED)


class NamedRead(NamedTuple):
    """A read in the lane's own form, taken apart. `code` names the image (tiers/board.py)."""

    code: int
    offset: int
    size_bytes: int
    unique: int
    device: int


def take_apart(fh: int, offset: int, size: int) -> NamedRead:
    """Return what a read whose offset has a number in its upper bits says."""
    number = (offset >> OFFSET_BITS) - 1
    return NamedRead(
        number << _GENERATION_BITS | size >> _GENERATION_AT,
        offset & _OFFSET_MASK,
        size & _SIZE_MASK,
        fh,
        size >> _SIZE_BITS & _DEVICE_MASK,
    )


class Replies:
    """Buffers for the bytes of reads: `buffer`, fill it, `reply`, with no await between.

    `devices` are the open files of /dev/fuse; none until the supervisor has given them.
    """

    def __init__(self) -> None:
        self.devices: Sequence[int] = ()
        self._memory = mmap.mmap(-1, _DATA_AT + MIB)
        self._whole = memoryview(self._memory)
        self._payload = self._whole[_DATA_AT:]
        self._data: memoryview | None = None

    def take_devices(self, fds: Sequence[int]) -> None:
        """Answer through these files from now on."""
        self.devices = fds

    def buffer(self, size_bytes: int) -> memoryview:
        """Return a buffer of `size_bytes` to fill."""
        self._data = self._payload[:size_bytes]
        return self._data

    def reply(self, data: bytes | memoryview, unique: int = 0, device: int = 0) -> memoryview:
        """Answer a read with `data`; return what pyfuse3 has to send to the lane.

        `unique` 0: this read has to be answered through the lane. So has one whose answer the
        kernel refuses: the lane knows what to do about that.
        """
        if data is not self._data:
            self.buffer(len(data))[:] = data
        end = _DATA_AT + len(data)
        self._data = None
        if unique and device < len(self.devices) and self._tell_kernel(unique, device, end):
            return _ANSWERED_VIEW
        self._whole[_WORD_AT:_DATA_AT] = _BYTES_FOLLOW
        return self._whole[_WORD_AT:end]

    def _tell_kernel(self, unique: int, device: int, end: int) -> bool:
        _OUT_HEADER.pack_into(self._memory, _HEADER_AT, end - _HEADER_AT, 0, unique)
        try:
            os.write(self.devices[device], self._whole[_HEADER_AT:end])
        except OSError as error:
            return error.errno in (errno.ENOENT, errno.ENODEV)
        return True


_ANSWERED_VIEW = memoryview(ANSWERED)
