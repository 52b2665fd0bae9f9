"""Packs: many frames back to back in one object, with an index of them at the end.

    magic "CACHEFSP" | format u32 | reserved u32 | frames | index | footer

The index makes a pack self-describing: a store can be rebuilt from its packs and manifests alone.
A pack's name is the BLAKE3 of its content.
"""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from cachefs.errors import CorruptError, FormatError
from cachefs.model.chunk import ID_BYTES
from cachefs.units import MIB

PACK_FORMAT = 1
TARGET_PACK_BYTES = 16 * MIB
"""A pack is closed when it has reached this; it exceeds it by less than one frame and the index."""

_MAGIC = b"CACHEFSP"
_FOOTER_MAGIC = b"CACHEFSX"
_HEADER = struct.Struct("<8sII")
_FOOTER = struct.Struct("<32sQII8s")
"""BLAKE3 of the index, offset of the index, number of its rows, format, magic."""

INDEX_DTYPE = np.dtype(
    [("id", f"V{ID_BYTES}"), ("offset", "<u4"), ("frame_bytes", "<u4"), ("plain_bytes", "<u4")]
)
PackIndex = npt.NDArray[np.void]

TAIL_BYTES = 64 * 1024
"""First guess of how much to read for index and footer: enough for 1,488 frames."""


class PackWriter:
    """Collects frames of one pack in memory."""

    def __init__(self) -> None:
        self._parts = [_HEADER.pack(_MAGIC, PACK_FORMAT, 0)]
        self._rows: list[tuple[bytes, int, int, int]] = []
        self.size_bytes = _HEADER.size

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, chunk_id: bytes, frame: bytes, plain_bytes: int) -> int:
        """Append a frame and return its offset in the pack."""
        offset = self.size_bytes
        self._parts.append(frame)
        self._rows.append((chunk_id, offset, len(frame), plain_bytes))
        self.size_bytes += len(frame)
        return offset

    def finish(self) -> tuple[bytes, bytes]:
        """Return the pack's id and its bytes."""
        index = np.array(self._rows, INDEX_DTYPE).tobytes()
        footer = _FOOTER.pack(
            blake3(index).digest(), self.size_bytes, len(self._rows), PACK_FORMAT, _FOOTER_MAGIC
        )
        data = b"".join((*self._parts, index, footer))
        return blake3(data).digest(), data


def check_header(data: bytes, pack_id: bytes) -> None:
    """Check the first bytes of a pack.

    Raises:
        FormatError: this is no pack, or one of a later format.
    """
    if len(data) < _HEADER.size or data[:8] != _MAGIC:
        raise FormatError(f"pack {pack_id.hex()[:16]} is a foreign file: it does not start as one")
    _check_format(_HEADER.unpack_from(data)[1], pack_id)


def index_bytes(tail: bytes, pack_id: bytes) -> int:
    """Return how many bytes at a pack's end hold its index and footer, from its last bytes.

    Raises:
        FormatError: this is no pack, or one of a later format.
    """
    if len(tail) < _FOOTER.size or tail[-8:] != _FOOTER_MAGIC:
        raise FormatError(
            f"pack {pack_id.hex()[:16]} is a foreign file or cut short: it has no footer"
        )
    _, _, rows, number, _ = _FOOTER.unpack_from(tail, len(tail) - _FOOTER.size)
    _check_format(number, pack_id)
    return int(rows) * INDEX_DTYPE.itemsize + _FOOTER.size


def _check_format(number: int, pack_id: bytes) -> None:
    if number != PACK_FORMAT:
        raise FormatError(
            f"pack {pack_id.hex()[:16]} has format {number}, this cachefs knows {PACK_FORMAT}: "
            "use a newer cachefs"
        )


def decode_index(tail: bytes, pack_id: bytes, pack_bytes: int) -> PackIndex:
    """Return the index of a pack, (n,) INDEX_DTYPE, from its last bytes.

    Raises:
        CorruptError: the index does not match its checksum or points outside the pack.
        FormatError: this is no pack, or one of a later format.
    """
    size_bytes = index_bytes(tail, pack_id)
    digest, offset, rows, _, _ = _FOOTER.unpack_from(tail, len(tail) - _FOOTER.size)
    table = tail[len(tail) - size_bytes : len(tail) - _FOOTER.size]
    if offset + size_bytes != pack_bytes or blake3(table).digest() != digest:
        raise CorruptError(f"pack {pack_id.hex()[:16]} is corrupt: its index does not match")
    index = np.frombuffer(table, INDEX_DTYPE, rows)
    ends = index["offset"].astype(np.uint64) + index["frame_bytes"]
    if rows and (int(ends.max()) > offset or int(index["offset"].min()) < _HEADER.size):
        raise CorruptError(f"pack {pack_id.hex()[:16]} is corrupt: a frame leaves it")
    return index
