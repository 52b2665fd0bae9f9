"""Segments: files of fixed-size slots, one file per class of chunk size.

A segment grows and shrinks by extents (a run of slots): growing preallocates the extent, shrinking
punches a hole. So there are at most eleven files, whatever L1 holds, and a slot's place is
arithmetic.

A slot number is unique in L1: the class in the upper bits, the index in its segment in the lower.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Set as AbstractSet
from pathlib import Path

from cachefs.errors import CacheError
from cachefs.model.chunk import MAX_CHUNK_BYTES, MIN_CHUNK_BYTES
from cachefs.units import MIB

INDEX_BITS = 28
INDEX_MASK = (1 << INDEX_BITS) - 1
"""2^28 slots of 4 KiB are 1 TiB, of 64 KiB 16 TiB."""

_MIN_SHIFT = MIN_CHUNK_BYTES.bit_length() - 1
CLASSES = MAX_CHUNK_BYTES.bit_length() - MIN_CHUNK_BYTES.bit_length() + 1

_MAX_EXTENT_BYTES = 64 * MIB
_FALLOC_FL_KEEP_SIZE, _FALLOC_FL_PUNCH_HOLE = 0x01, 0x02


def class_of(chunk_bytes: int) -> int:
    """Return the class whose slots are `chunk_bytes` long (a power of two): 0 for 4 KiB."""
    return chunk_bytes.bit_length() - 1 - _MIN_SHIFT


def slot_bytes_of(number: int) -> int:
    """Return the length of the slots of a class."""
    return MIN_CHUNK_BYTES << number


def slot_class(slot: int) -> int:
    """Return the class of a slot number."""
    return slot >> INDEX_BITS


def extent_bytes_for(quota_bytes: int, slot_bytes: int) -> int:
    """Return the extent for a quota: a sixteenth of it, between one slot and 64 MiB."""
    wanted = min(_MAX_EXTENT_BYTES, quota_bytes // 16)
    return max(slot_bytes, 1 << max(0, wanted.bit_length() - 1))


class Segment:
    """The file of one class. The daemon only reads from it; fetchers write."""

    def __init__(self, folder: Path, number: int, extent_bytes: int) -> None:
        self.number = number
        self.slot_bytes = slot_bytes_of(number)
        self.extent_slots = extent_bytes // self.slot_bytes
        self.extent_bytes = extent_bytes
        self.path = folder / str(self.slot_bytes)
        try:
            self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise CacheError(f"cannot open the segment {self.path}: {error.strerror}") from error

    def position(self, slot: int) -> int:
        """Return where a slot begins in the file, in bytes."""
        return (slot & INDEX_MASK) * self.slot_bytes

    def allocate(self, extent: int) -> None:
        """Take disk space for an extent. Blocks: not on the event loop.

        Raises:
            CacheError: the disk has no space for it, or does not answer right.
        """
        offset = extent * self.extent_bytes
        try:
            os.posix_fallocate(self.fd, offset, self.extent_bytes)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                self.release(extent)  # what was taken before the space ended
            raise CacheError(f"cannot grow the segment {self.path}: {error.strerror}") from error

    def release(self, extent: int) -> None:
        """Give the disk space of an extent back. Blocks: not on the event loop."""
        _punch_hole(self.fd, extent * self.extent_bytes, self.extent_bytes)

    def release_all_but(self, extents: AbstractSet[int]) -> None:
        """Give the disk space of all other extents back. Blocks: not on the event loop."""
        begin = 0
        for extent in sorted(extents):
            if extent > begin:
                _punch_hole(
                    self.fd, begin * self.extent_bytes, (extent - begin) * self.extent_bytes
                )
            begin = extent + 1
        if self.size_bytes() > begin * self.extent_bytes:
            os.truncate(self.fd, begin * self.extent_bytes)

    def size_bytes(self) -> int:
        """Return the length of the file."""
        return os.fstat(self.fd).st_size

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)


_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def _punch_hole(fd: int, offset: int, size_bytes: int) -> None:
    mode = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE
    if _libc.fallocate(fd, mode, offset, size_bytes) != 0:
        number = ctypes.get_errno()
        raise CacheError(f"cannot give disk space back: {os.strerror(number)}")
