"""The frame: a header of 8 bytes (codec, version, plain length) and the payload.

The codec is a property of the frame, so frames of different codecs lie side by side. Decoding is
bounded: the plain length that the frame claims is compared with the one that the manifest knows
before anything of that size is allocated (a crafted frame must not cost memory).

Concurrency: encode and decode may be called from any thread; zstd contexts are kept per thread.
"""

from __future__ import annotations

import struct
import threading

import zstandard

from cachefs.errors import CorruptError, FormatError

HEADER = struct.Struct("<BBHI")
"""codec, version of the header, reserved, plain length in bytes."""

PLAIN = 0
ZSTD = 1
CODEC_NAMES = {PLAIN: "none", ZSTD: "zstd"}
DEFAULT_LEVEL = 3

_VERSION = 1
_contexts = threading.local()


def encode_frame(plain: bytes | memoryview, level: int = DEFAULT_LEVEL) -> bytes:
    """Return the frame of a chunk: compressed with zstd, or plain where that does not shrink it."""
    payload = _compressor(level).compress(plain)
    if len(payload) < len(plain):
        return HEADER.pack(ZSTD, _VERSION, 0, len(plain)) + payload
    return HEADER.pack(PLAIN, _VERSION, 0, len(plain)) + bytes(plain)


def decode_frame(frame: bytes | memoryview, plain_bytes: int) -> bytes | memoryview:
    """Return the plain bytes of a frame that must hold exactly `plain_bytes` of them.

    The content itself is not checked here: the caller compares its BLAKE3 with the chunk id.

    Raises:
        CorruptError: the frame is cut, claims another length, or its payload cannot be decoded.
        FormatError: the codec or the header is of a later version.
    """
    if len(frame) < HEADER.size:
        raise CorruptError(f"a frame of {len(frame)} bytes is cut short")
    codec, version, _, claimed_bytes = HEADER.unpack_from(frame)
    if version != _VERSION or codec not in CODEC_NAMES:
        raise FormatError(f"a frame has codec {codec}, version {version}: use a newer cachefs")
    if claimed_bytes != plain_bytes:
        raise CorruptError(
            f"a frame claims {claimed_bytes} bytes where the chunk has {plain_bytes}"
        )
    payload = memoryview(frame)[HEADER.size :]
    plain = payload if codec == PLAIN else _decompress(payload, plain_bytes)
    if len(plain) != plain_bytes:
        raise CorruptError(f"a frame holds {len(plain)} bytes where the chunk has {plain_bytes}")
    return plain


def _decompress(payload: memoryview, plain_bytes: int) -> bytes:
    try:
        # zstd allocates what the frame itself claims, so that has to be looked at first.
        if zstandard.get_frame_parameters(payload).content_size != plain_bytes:
            raise CorruptError("a zstd payload claims another length than its frame")
        plain: bytes = _decompressor().decompress(payload, max_output_size=plain_bytes)
    except zstandard.ZstdError as error:
        raise CorruptError(f"a zstd payload cannot be decompressed: {error}") from error
    return plain


def _compressor(level: int) -> zstandard.ZstdCompressor:
    compressors: dict[int, zstandard.ZstdCompressor]
    compressors = _contexts.__dict__.setdefault("compressors", {})
    compressor = compressors.get(level)
    if compressor is None:
        compressor = compressors[level] = zstandard.ZstdCompressor(
            level=level, write_checksum=False
        )
    return compressor


def _decompressor() -> zstandard.ZstdDecompressor:
    decompressor: zstandard.ZstdDecompressor | None = getattr(_contexts, "decompressor", None)
    if decompressor is None:
        decompressor = _contexts.decompressor = zstandard.ZstdDecompressor()
    return decompressor
