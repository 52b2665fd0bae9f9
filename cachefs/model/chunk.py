"""Chunks: aligned blocks of an image, named by their content."""

from __future__ import annotations

from typing import NamedTuple

from blake3 import blake3

from cachefs.errors import UsageError
from cachefs.units import KIB, MIB, format_size

ID_BYTES = 32
"""Length of a chunk id: BLAKE3-256 of the plain bytes."""

MIN_CHUNK_BYTES = 4 * KIB
MAX_CHUNK_BYTES = 4 * MIB


class ChunkRef(NamedTuple):
    """One chunk of an image and where the store has its frame. `plain_bytes` is its length."""

    id: bytes
    plain_bytes: int
    pack: bytes
    offset: int
    frame_bytes: int

    @property
    def is_zero(self) -> bool:
        """Whether the chunk is all zeros: it takes no frame and is stored nowhere."""
        return self.frame_bytes == 0


def chunk_id(plain: bytes | bytearray | memoryview) -> bytes:
    """Return the id of a chunk: BLAKE3-256 of its plain bytes, 32 bytes."""
    return blake3(plain).digest()


def zero_chunk(plain_bytes: int) -> ChunkRef:
    """Return the reference to a chunk of `plain_bytes` zeros."""
    return ChunkRef(b"", plain_bytes, b"", 0, 0)


def check_chunk_bytes(chunk_bytes: int) -> int:
    """Return `chunk_bytes` if it is a power of two from 4 KiB to 4 MiB.

    Raises:
        UsageError: it is not.
    """
    if not MIN_CHUNK_BYTES <= chunk_bytes <= MAX_CHUNK_BYTES or chunk_bytes & (chunk_bytes - 1):
        raise UsageError(
            f"chunk size {format_size(chunk_bytes)} is not possible: "
            "take a power of two from 4 KiB to 4 MiB"
        )
    return chunk_bytes
