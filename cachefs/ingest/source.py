"""What an image is read from: a file, a block device, or a stream.

A source gives batches: buffers with whole chunks back to back, in image order, without the chunks
that lie in holes. One thread reads; a batch belongs to whoever has it until its buffer is given
back.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from cachefs.errors import CachefsError, ConflictError, NotFoundError, UsageError
from cachefs.units import MIB, format_size

BATCH_BYTES = 4 * MIB
"""Large enough that the Python work per batch does not count, and one chunk of the largest size."""

STANDARD_INPUT = "-"

_log = logging.getLogger(__name__)


class Batch(NamedTuple):
    """Chunks that lie back to back in `buffer`.

    `indexes`: (n,) uint64, ascending chunk indexes. `size_bytes`: what of the buffer is the
    image's; the rest of the last chunk is zeros. `hole_bytes`: skipped since the batch before.
    """

    indexes: npt.NDArray[np.uint64]
    buffer: memoryview
    size_bytes: int
    hole_bytes: int


TakeBuffer = Callable[[], memoryview]


class Source(Protocol):
    """Something that an image is read from."""

    name: str

    @property
    def size_bytes(self) -> int | None:
        """How large the image will be; None until a stream has ended."""
        ...

    def batches(self, chunk_bytes: int, take_buffer: TakeBuffer) -> Iterator[Batch]:
        """Yield the image in order.

        Raises:
            ConflictError: the source changed while it was read.
        """
        ...


class FileSource:
    """A file or block device, whose holes are skipped."""

    def __init__(self, fd: int, name: str) -> None:
        self.name = name
        self._fd = fd
        self._size_bytes = _size_of(fd)
        self._changed_ns = os.fstat(fd).st_mtime_ns

    @property
    def size_bytes(self) -> int:
        """How large the image will be."""
        return self._size_bytes

    def batches(self, chunk_bytes: int, take_buffer: TakeBuffer) -> Iterator[Batch]:
        """See Source."""
        packer = _Packer(chunk_bytes, take_buffer)
        at = 0
        for first, last in self._spans(chunk_bytes):
            packer.hole_bytes += first - at
            at = first
            while at < last:
                taken = min(packer.room_bytes, last - at)
                self._read(packer.place(at, taken), at)
                at += taken
                if not packer.room_bytes:
                    yield packer.batch()
        packer.hole_bytes += self._size_bytes - at
        yield packer.batch()
        if _size_of(self._fd) != self._size_bytes:
            raise self._changed()
        if os.fstat(self._fd).st_mtime_ns != self._changed_ns:
            _log.warning("%s was written to while it was read: check the image", self.name)

    def _spans(self, chunk_bytes: int) -> Iterator[tuple[int, int]]:
        """Yield where data is: first and last byte, on chunk borders but for the image's end."""
        waiting: tuple[int, int] | None = None
        for first, last in self._extents():
            begin = first - first % chunk_bytes
            end = min(-(-last // chunk_bytes) * chunk_bytes, self._size_bytes)
            if waiting and begin <= waiting[1]:
                waiting = (waiting[0], max(waiting[1], end))
                continue
            if waiting:
                yield waiting
            waiting = (begin, end)
        if waiting:
            yield waiting

    def _extents(self) -> Iterator[tuple[int, int]]:
        at = 0
        while at < self._size_bytes:
            try:
                first = os.lseek(self._fd, at, os.SEEK_DATA)
                last = os.lseek(self._fd, first, os.SEEK_HOLE)
            except OSError as error:
                if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                    return
                first, last = at, self._size_bytes  # a device or file system without holes
            if first >= self._size_bytes:
                return  # it grew, which the end finds
            yield first, min(last, self._size_bytes)
            at = last

    def _read(self, target: memoryview, offset: int) -> None:
        while target:
            try:
                got = os.preadv(self._fd, [target], offset)
            except OSError as error:
                raise CachefsError(
                    f"cannot read {self.name} at byte {offset}: {error.strerror}"
                ) from error
            if not got:
                raise self._changed()
            target = target[got:]
            offset += got

    def _changed(self) -> ConflictError:
        return ConflictError(
            f"{self.name} had {format_size(self._size_bytes)} when the import began and now has "
            f"{format_size(_size_of(self._fd))}: import it when nobody writes to it"
        )


class StreamSource:
    """A pipe, read until it ends."""

    def __init__(self, fd: int, name: str) -> None:
        self.name = name
        self._fd = fd
        self._size_bytes: int | None = None

    @property
    def size_bytes(self) -> int | None:
        """How large the image is, once the stream has ended."""
        return self._size_bytes

    def batches(self, chunk_bytes: int, take_buffer: TakeBuffer) -> Iterator[Batch]:
        """See Source."""
        packer = _Packer(chunk_bytes, take_buffer)
        at = 0
        while got := self._read(packer.rest()):
            packer.place(at, got)
            at += got
            if not packer.room_bytes:
                yield packer.batch()
        self._size_bytes = at
        yield packer.batch()

    def _read(self, target: memoryview) -> int:
        try:
            return os.readv(self._fd, [target])
        except OSError as error:
            raise CachefsError(f"cannot read {self.name}: {error.strerror}") from error


class _Packer:
    """Packs pieces of the image back to back into one buffer after the other."""

    def __init__(self, chunk_bytes: int, take_buffer: TakeBuffer) -> None:
        self.hole_bytes = 0
        self._chunk_bytes = chunk_bytes
        self._take_buffer = take_buffer
        self._buffer = take_buffer()
        self._used_bytes = 0
        self._spans: list[tuple[int, int]] = []

    @property
    def room_bytes(self) -> int:
        return len(self._buffer) - self._used_bytes

    def rest(self) -> memoryview:
        return self._buffer[self._used_bytes :]

    def place(self, offset: int, size_bytes: int) -> memoryview:
        """Return where the image's bytes from `offset` go, which is where `rest` began."""
        target = self._buffer[self._used_bytes : self._used_bytes + size_bytes]
        self._used_bytes += size_bytes
        self._spans.append((offset, offset + size_bytes))
        return target

    def batch(self) -> Batch:
        """Return what is packed, and go on with another buffer once more is to be packed."""
        chunk_bytes = self._chunk_bytes
        ranges = [
            np.arange(-(-first // chunk_bytes), -(-last // chunk_bytes), dtype=np.uint64)
            for first, last in self._spans
        ]
        indexes = np.concatenate(ranges) if ranges else np.zeros(0, np.uint64)
        whole_bytes = len(indexes) * chunk_bytes
        self._buffer[self._used_bytes : whole_bytes] = bytes(whole_bytes - self._used_bytes)
        batch = Batch(indexes, self._buffer, self._used_bytes, self.hole_bytes)
        self._buffer, self._used_bytes, self._spans = self._take_buffer(), 0, []
        self.hole_bytes = 0
        return batch


@contextmanager
def open_source(path: str) -> Iterator[Source]:
    """Open a file or block device, or standard input for `-`.

    Raises:
        NotFoundError: there is no such file.
        UsageError: it is something that cannot be imported.
    """
    if path == STANDARD_INPUT:
        regular = stat.S_ISREG(os.fstat(0).st_mode) and os.lseek(0, 0, os.SEEK_CUR) == 0
        yield FileSource(0, "standard input") if regular else StreamSource(0, "standard input")
        return
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no file {path}") from error
    except OSError as error:
        raise UsageError(f"cannot open {path}: {error.strerror}") from error
    try:
        yield _source_of(fd, path)
    finally:
        os.close(fd)


def _source_of(fd: int, path: str) -> Source:
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode) or stat.S_ISBLK(mode):
        return FileSource(fd, path)
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        return StreamSource(fd, path)
    kind = "a folder" if Path(path).is_dir() else "neither a file nor a block device"
    raise UsageError(f"{path} is {kind}: it cannot be imported")


def _size_of(fd: int) -> int:
    """Return a file's or block device's size; fstat says 0 for the latter."""
    return os.lseek(fd, 0, os.SEEK_END)
