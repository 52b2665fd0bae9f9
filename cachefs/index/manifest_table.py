"""A manifest as this host keeps it: a file of records in pages, read by page on demand.

    magic "CACHEFST" | format u32 | header bytes u32 | header checksum u32 | header | pages

The header holds sizes, runs, pack ids and a CRC-32 of every page. Only the header stays in memory
(a few hundred kilobytes for an image of 20 GiB) with a bounded number of pages shared by all
images. Pages are read with pread, not mapped: a failing disk must not kill the daemon with SIGBUS.

Zero chunks need no page. A page that does not match its CRC makes the table corrupt: it is removed
and fetched again, so a flipped bit on this disk never becomes a wrong byte.
"""

from __future__ import annotations

import itertools
import os
import struct
import zlib
from array import array
from bisect import bisect_right
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cachefs.errors import CacheError, TableDamagedError
from cachefs.model.chunk import ID_BYTES, ChunkRef, zero_chunk
from cachefs.model.manifest import RECORD_DTYPE, RUN_DTYPE, Manifest

PAGE_RECORDS = 64
_RECORD_BYTES = RECORD_DTYPE.itemsize
PAGE_BYTES = PAGE_RECORDS * _RECORD_BYTES
_MAGIC = b"CACHEFST"
_FORMAT = 1
_PREFIX = struct.Struct("<8sIII")
_SIZES = struct.Struct("<QQQQQ")
"""image bytes, chunk bytes, runs, packs, records."""
_RECORD = struct.Struct(f"<{ID_BYTES}sIII")
_serials = itertools.count()
"""Tells the pages of tables apart for good; an fd would be used again."""


class PageCache:
    """The pages of all tables that were used last, bounded in bytes."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = max(1, limit_bytes // PAGE_BYTES)
        self._pages: OrderedDict[tuple[int, int], bytes] = OrderedDict()

    def get(self, key: tuple[int, int]) -> bytes | None:
        """Return a page that is in memory."""
        return self._pages.get(key)

    def put(self, key: tuple[int, int], page: bytes) -> None:
        """Keep a page, in place of the one that has been here longest."""
        self._pages[key] = page
        if len(self._pages) > self._limit:
            self._pages.popitem(last=False)

    @property
    def size_bytes(self) -> int:
        """What the pages take."""
        return len(self._pages) * PAGE_BYTES


class ManifestTable:
    """An opened table: chunk index -> ChunkRef.

    Concurrency: event loop only. A lookup reads at most one page, from the page cache of the kernel
    as a rule.
    """

    def __init__(self, path: Path, pages: PageCache) -> None:
        self.path = path
        self._pages = pages
        self.serial = next(_serials)
        self._fd = -1
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._read_header()
        except BaseException:
            self.close()
            raise

    def chunk(self, index: int) -> ChunkRef:
        """Return the reference of the chunk at `index`, which has to be within the image.

        Raises:
            TableDamagedError: the table is damaged.
        """
        plain_bytes = min(self.chunk_bytes, self.size_bytes - index * self.chunk_bytes)
        row = self._row(index)
        if row < 0:
            return zero_chunk(plain_bytes)
        page = self._page(row // PAGE_RECORDS)
        found, pack, offset, frame_bytes = _RECORD.unpack_from(
            page, row % PAGE_RECORDS * _RECORD_BYTES
        )
        return ChunkRef(found, plain_bytes, self._packs[pack], offset, frame_bytes)

    def id_at(self, index: int) -> bytes:
        """Return the id of the chunk at `index`; empty for a zero chunk. The short way for hits."""
        row = self._row(index)
        if row < 0:
            return b""
        number, row = divmod(row, PAGE_RECORDS)
        page = self._pages.get((self.serial, number)) or self._page(number)
        return page[row * _RECORD_BYTES : row * _RECORD_BYTES + ID_BYTES]

    def keys(self) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
        """Return the first 8 bytes of the ids of all data chunks, (n,), and where these lie, (n,).

        From the whole table, past the cache of pages: for a thread.

        Raises:
            TableDamagedError: the table is damaged.
        """
        data = memoryview(self._pread(self._records * _RECORD_BYTES, self._pages_at))
        pages = range(0, len(data), PAGE_BYTES)
        if [zlib.crc32(data[at : at + PAGE_BYTES]) for at in pages] != self._checksums.tolist():
            raise TableDamagedError(f"the local table {self.path} is damaged")
        keys = np.ndarray(self._records, "<u8", data, strides=(_RECORD_BYTES,)).copy()
        steps = np.array(self._firsts, np.int64) - np.array(self._rows, np.int64)
        places = np.repeat(steps, np.array(self._counts, np.int64)) + np.arange(self._records)
        return keys, places

    def ids(self) -> list[bytes]:
        """Return the ids of all data chunks, from the whole table. For a thread."""
        data = self._pread(self._records * _RECORD_BYTES, self._pages_at)
        starts = range(0, len(data), _RECORD_BYTES)
        return list({data[at : at + ID_BYTES] for at in starts})

    def close(self) -> None:
        """Close the file. Where others may still read it is left to the last of them to go."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        self.close()

    def _row(self, index: int) -> int:
        run = bisect_right(self._firsts, index) - 1
        if run < 0:
            return -1
        within = index - self._firsts[run]
        return self._rows[run] + within if within < self._counts[run] else -1

    def _page(self, number: int) -> bytes:
        page = self._pages.get((self.serial, number))
        if page is None:
            rows = min(PAGE_RECORDS, self._records - number * PAGE_RECORDS)
            page = self._pread(rows * _RECORD_BYTES, self._pages_at + number * PAGE_BYTES)
            if zlib.crc32(page) != self._checksums[number]:
                raise TableDamagedError(f"the local table {self.path} is damaged")
            self._pages.put((self.serial, number), page)
        return page

    def _read_header(self) -> None:
        magic, number, header_bytes, checksum = _PREFIX.unpack(self._pread(_PREFIX.size, 0))
        if magic != _MAGIC or number != _FORMAT:
            raise TableDamagedError(f"{self.path} is no local table of this version")
        if header_bytes > os.fstat(self._fd).st_size:  # or it would cost memory
            raise TableDamagedError(f"the local table {self.path} is damaged")
        header = self._pread(header_bytes, _PREFIX.size)
        if zlib.crc32(header) != checksum:
            raise TableDamagedError(f"the local table {self.path} is damaged")
        sizes = _SIZES.unpack_from(header)
        self.size_bytes, self.chunk_bytes, runs, packs, self._records = sizes
        at = _SIZES.size
        table = np.frombuffer(header, RUN_DTYPE, runs, at)
        self._firsts = array("Q", table["first"].tobytes())
        self._counts = array("Q", table["count"].tobytes())
        self._rows = array("Q", (np.cumsum(table["count"]) - table["count"]).tobytes())
        at += runs * RUN_DTYPE.itemsize
        packs_end = at + packs * ID_BYTES
        self._packs = [header[place : place + ID_BYTES] for place in range(at, packs_end, ID_BYTES)]
        self._checksums = np.frombuffer(header, "<u4", -(-self._records // PAGE_RECORDS), packs_end)
        self._pages_at = _PREFIX.size + header_bytes

    def _pread(self, size_bytes: int, offset: int) -> bytes:
        try:
            data = os.pread(self._fd, size_bytes, offset)
        except OSError as error:
            # It may be had from the store, and lie elsewhere then.
            raise TableDamagedError(f"cannot read {self.path}: {error.strerror}") from error
        if len(data) != size_bytes:
            raise TableDamagedError(f"the local table {self.path} is cut short")
        return data


def write_table(manifest: Manifest, path: Path) -> None:
    """Write a manifest as a local table: complete or absent.

    Raises:
        CacheError: the local disk did not take it.
    """
    records = manifest.records.tobytes()
    pages = [records[at : at + PAGE_BYTES] for at in range(0, len(records), PAGE_BYTES)]
    checksums = np.array([zlib.crc32(page) for page in pages], "<u4")
    sizes = (
        manifest.size_bytes,
        manifest.chunk_bytes,
        len(manifest.runs),
        len(manifest.packs),
        len(manifest.records),
    )
    header = b"".join(
        (_SIZES.pack(*sizes), manifest.runs.tobytes(), *manifest.packs, checksums.tobytes())
    )
    prefix = _PREFIX.pack(_MAGIC, _FORMAT, len(header), zlib.crc32(header))
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(prefix + header + records)
        temporary.rename(path)
    except OSError as error:
        with suppress(OSError):  # on a disk that takes nothing there is nothing to remove
            temporary.unlink()
        raise CacheError(f"cannot write {path}: {error.strerror}") from error
