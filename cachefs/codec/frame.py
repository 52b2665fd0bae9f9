"""The frame: a header of 8 bytes (codec, version, plain length) and the payload.

The codec is a property of the frame, so frames of different codecs lie side by side. Decoding is
bounded: the plain length that the frame claims is compared with the one that the manifest knows
before anything of that size is allocated (a crafted frame must not cost memory).

Concurrency: encode and decode may be called from any thread.
"""

from __future__ import annotations

import struct

from cachefs.codec.codecs import Codec, Zstd, codec_of_name, codec_of_number
from cachefs.errors import CachefsError, CorruptError, FormatError

HEADER = struct.Struct("<BBHI")
"""codec, version of the header, reserved, plain length in bytes."""

PLAIN = 0
NONE = "none"
"""What PLAIN is called by people."""

ZSTD = Zstd.number
DEFAULT_LEVEL = Zstd.default_level

_VERSION = 1


def encode_frame(plain: bytes | memoryview, level: int = DEFAULT_LEVEL) -> bytes:
    """Return the frame of a chunk: compressed with zstd, or plain where that does not shrink it."""
    return compressed_frame(plain, codec_of_name(Zstd.name), level)


def compressed_frame(
    plain: bytes | memoryview, codec: Codec, level: int, min_ratio: float = 1.0
) -> bytes:
    """Return a compressed frame, or a plain one where the gain is less than `min_ratio`."""
    payload = codec.compress(plain, level)
    if len(payload) * min_ratio < len(plain):
        return HEADER.pack(codec.number, _VERSION, 0, len(plain)) + payload
    return plain_frame(plain)


def plain_frame(plain: bytes | memoryview) -> bytes:
    """Return a frame that is not compressed."""
    return HEADER.pack(PLAIN, _VERSION, 0, len(plain)) + bytes(plain)


def decode_frame(frame: bytes | memoryview, plain_bytes: int) -> bytes | memoryview:
    """Return the plain bytes of a frame that must hold exactly `plain_bytes` of them.

    The content itself is not checked here: the caller compares its BLAKE3 with the chunk id.

    Raises:
        CorruptError: the frame is cut, claims another length, or its payload cannot be decoded.
        FormatError: the codec is not known here, or the header is of a later version.
    """
    if len(frame) < HEADER.size:
        raise CorruptError(f"a frame of {len(frame)} bytes is cut short")
    codec, version, _, claimed_bytes = HEADER.unpack_from(frame)
    if version != _VERSION:
        raise FormatError(f"a frame has codec {codec}, version {version}: use a newer cachefs")
    if claimed_bytes != plain_bytes:
        raise CorruptError(
            f"a frame claims {claimed_bytes} bytes where the chunk has {plain_bytes}"
        )
    payload = memoryview(frame)[HEADER.size :]
    plain = payload if codec == PLAIN else _decompress(codec, payload, plain_bytes)
    if len(plain) != plain_bytes:
        raise CorruptError(f"a frame holds {len(plain)} bytes where the chunk has {plain_bytes}")
    return plain


def _decompress(number: int, payload: memoryview, plain_bytes: int) -> bytes | memoryview:
    codec = codec_of_number(number)
    try:
        return codec.decompress(payload, plain_bytes)
    except CachefsError:
        raise
    except Exception as error:  # whatever a library raises, the payload is why
        raise CorruptError(f"a {codec.name} payload cannot be decompressed: {error}") from error
