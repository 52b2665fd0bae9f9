"""Codecs: how a payload shrinks and grows back, each by its number in the frame and by its name.

A site can add its own: a class like these below, with a number from 128 to 254, named by an entry
point of the group `cachefs.codecs`, or given to `register`. Every host that reads such frames needs
it as well.

Decompression is bounded: no codec makes more than the bytes that it is told to, and one whose
payload claims a length looks at that before it allocates anything.

Concurrency: any thread; zstd contexts are kept per thread.
"""

from __future__ import annotations

import threading
import zlib
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Protocol

import zstandard

from cachefs.errors import CorruptError, FormatError, UsageError

ENTRY_POINT_GROUP = "cachefs.codecs"
SITE_NUMBERS = range(128, 255)


class Codec(Protocol):
    """What a codec is. `levels`: those that it takes; a codec without levels has one."""

    number: int
    name: str
    levels: range
    default_level: int

    def compress(self, plain: bytes | memoryview, level: int) -> bytes:
        """Return a payload."""
        ...

    def decompress(self, payload: memoryview, plain_bytes: int) -> bytes | memoryview:
        """Return what a payload holds, of which at most `plain_bytes` are ever allocated.

        Raises:
            Exception: the payload is damaged or holds more; every exception counts as damage.
        """
        ...


class Zstd:
    """zstd: the default; fast to read at any level."""

    number, name = 1, "zstd"
    levels, default_level = range(1, 23), 3

    def __init__(self) -> None:
        self._contexts = threading.local()

    def compress(self, plain: bytes | memoryview, level: int) -> bytes:
        """Return a payload that says how long its content is."""
        compressors: dict[int, zstandard.ZstdCompressor]
        compressors = self._contexts.__dict__.setdefault("compressors", {})
        compressor = compressors.get(level)
        if compressor is None:
            compressor = compressors[level] = zstandard.ZstdCompressor(
                level=level, write_checksum=False
            )
        return compressor.compress(plain)

    def decompress(self, payload: memoryview, plain_bytes: int) -> bytes:
        """Return what a payload holds."""
        # zstd allocates what the payload itself claims, so that has to be looked at first.
        if zstandard.get_frame_parameters(payload).content_size != plain_bytes:
            raise CorruptError("a zstd payload claims another length than its frame")
        decompressor: zstandard.ZstdDecompressor | None
        decompressor = getattr(self._contexts, "decompressor", None)
        if decompressor is None:
            decompressor = self._contexts.decompressor = zstandard.ZstdDecompressor()
        plain: bytes = decompressor.decompress(payload, max_output_size=plain_bytes)
        return plain


class Lz4:
    """LZ4 blocks: larger than zstd, and twice as fast to read. Levels from 3 are its slow mode."""

    number, name = 2, "lz4"
    levels, default_level = range(1, 13), 1

    def __init__(self) -> None:
        self._lz4 = import_module("lz4.block")

    def compress(self, plain: bytes | memoryview, level: int) -> bytes:
        """Return a payload without a length: the frame has it."""
        mode: dict[str, Any] = (
            {"mode": "default"} if level < 3 else {"mode": "high_compression", "compression": level}
        )
        payload: bytes = self._lz4.compress(plain, store_size=False, **mode)
        return payload

    def decompress(self, payload: memoryview, plain_bytes: int) -> bytes:
        """Return what a payload holds; the library is given a buffer of `plain_bytes`."""
        plain: bytes = self._lz4.decompress(payload, uncompressed_size=plain_bytes)
        return plain


class Snappy:
    """Snappy, in its raw format."""

    number, name = 3, "snappy"
    levels, default_level = range(1, 2), 1

    def __init__(self) -> None:
        self._snappy = import_module("cramjam").snappy

    def compress(self, plain: bytes | memoryview, level: int) -> bytes:
        """Return a payload, which begins with the length of its content."""
        return bytes(self._snappy.compress_raw(plain))

    def decompress(self, payload: memoryview, plain_bytes: int) -> memoryview:
        """Return what a payload holds."""
        if self._snappy.decompress_raw_len(payload) != plain_bytes:
            raise CorruptError("a snappy payload claims another length than its frame")
        plain = bytearray(plain_bytes)
        written = self._snappy.decompress_raw_into(payload, plain)
        return memoryview(plain)[:written]


class Gzip:
    """gzip, with the standard library's zlib: for those who must."""

    number, name = 4, "gzip"
    levels, default_level = range(1, 10), 6

    def compress(self, plain: bytes | memoryview, level: int) -> bytes:
        """Return a payload that `gzip -d` reads."""
        return zlib.compress(plain, level, wbits=31)

    def decompress(self, payload: memoryview, plain_bytes: int) -> bytes:
        """Return what a payload holds."""
        stream = zlib.decompressobj(wbits=31)
        plain = stream.decompress(payload, plain_bytes)
        # At the bound it may not have seen the end yet, and a little more comes out if there is.
        if stream.decompress(stream.unconsumed_tail, 1) or not stream.eof or stream.unused_data:
            raise CorruptError("a gzip payload holds more or less than its frame says")
        return plain


_MAKERS: dict[str, type[Codec]] = {codec.name: codec for codec in (Zstd, Lz4, Snappy, Gzip)}
_NAMES = {codec.number: codec.name for codec in _MAKERS.values()}
_lock = threading.Lock()
_made: dict[str, Codec] = {"zstd": Zstd()}
_by_number: dict[int, Codec] = {1: _made["zstd"]}
_has_site_codecs = False


def register(codec: Codec) -> None:
    """Add a site's codec.

    Raises:
        UsageError: its number is not for sites, or number or name are another codec's.
    """
    if codec.number not in SITE_NUMBERS:
        raise UsageError(
            f"codec '{codec.name}' has number {codec.number}: sites take "
            f"{SITE_NUMBERS[0]} to {SITE_NUMBERS[-1]}"
        )
    with _lock:
        for other in (_by_number.get(codec.number), _made.get(codec.name)):
            if other is not None and type(other) is not type(codec):
                raise UsageError(
                    f"codec '{codec.name}', number {codec.number}, and codec '{other.name}', "
                    f"number {other.number}, are in each other's way"
                )
        if codec.name in _MAKERS:
            raise UsageError(f"codec '{codec.name}' is one of cachefs itself")
        _made[codec.name] = _by_number[codec.number] = codec


def codec_of_number(number: int) -> Codec:
    """Return the codec of a frame.

    Raises:
        FormatError: nobody here knows it, or its library is not installed.
    """
    codec = _by_number.get(number)
    if codec is not None:
        return codec
    if number in _NAMES:
        return _make(_NAMES[number])
    _load_site_codecs()
    codec = _by_number.get(number)
    if codec is None:
        raise FormatError(f"a frame has codec {number}: use a newer cachefs, or add the codec")
    return codec


def codec_of_name(name: str) -> Codec:
    """Return the codec of this name.

    Raises:
        UsageError: there is none.
        FormatError: its library is not installed.
    """
    codec = _made.get(name)
    if codec is not None:
        return codec
    if name in _MAKERS:
        return _make(name)
    _load_site_codecs()
    codec = _made.get(name)
    if codec is None:
        known = ", ".join(sorted({*_MAKERS, *_made, "none"}))
        raise UsageError(f"there is no codec '{name}': take one of {known}")
    return codec


def _make(name: str) -> Codec:
    try:
        codec = _MAKERS[name]()
    except ModuleNotFoundError as error:
        raise FormatError(
            f"codec '{name}' needs a library: pip install 'cachefs[{name}]'"
        ) from error
    with _lock:
        _made[name] = _by_number[codec.number] = codec
    return codec


def _load_site_codecs() -> None:
    """Register what the entry points name, once, and only when an unknown codec is met."""
    global _has_site_codecs  # noqa: PLW0603 - the registry is the module's, and so is its state
    if not _has_site_codecs:
        _has_site_codecs = True
        for point in entry_points(group=ENTRY_POINT_GROUP):
            register(point.load()())
