import os
import sys
import tracemalloc
import zlib
from importlib.metadata import EntryPoint

import cramjam
import lz4.block
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefs.codec import codecs as module
from cachefs.codec.codecs import codec_of_name, codec_of_number, register
from cachefs.codec.compression import Compression, parse_compression
from cachefs.codec.frame import HEADER, PLAIN, decode_frame, plain_frame
from cachefs.errors import CachefsError, CorruptError, FormatError, UsageError
from cachefs.units import KIB, MIB

TEXT = b"all work and no play makes jack a dull boy. " * 100
NAMES = ["zstd", "lz4", "snappy", "gzip"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("plain", [TEXT, b"x" * 4096, bytes(4 * MIB)])
def test_every_codec_at_every_level_gives_back_what_it_got(name: str, plain: bytes) -> None:
    codec = codec_of_name(name)
    levels = codec.levels if len(plain) < MIB else [codec.default_level]
    for level in levels:
        frame = Compression(name, level).encode(memoryview(plain))
        assert HEADER.unpack_from(frame)[0] == codec.number
        assert len(frame) < len(plain)
        assert bytes(decode_frame(memoryview(frame), len(plain))) == plain


@pytest.mark.parametrize("name", NAMES)
@given(plain=st.binary(min_size=1, max_size=300))
def test_any_bytes_come_back(name: str, plain: bytes) -> None:
    assert bytes(decode_frame(Compression(name).encode(plain), len(plain))) == plain


@pytest.mark.parametrize("name", NAMES)
def test_what_does_not_shrink_is_plain(name: str) -> None:
    noise = os.urandom(4096)
    assert Compression(name).encode(noise) == plain_frame(noise)
    assert HEADER.unpack_from(plain_frame(noise))[0] == PLAIN


@pytest.mark.parametrize("name", NAMES)
def test_below_the_least_gain_a_frame_is_plain(name: str) -> None:
    """The half of it is noise: it shrinks to little more than a half."""
    plain = os.urandom(32 * KIB) + bytes(32 * KIB)
    assert HEADER.unpack_from(Compression(name, min_ratio=1.8).encode(plain))[0] != PLAIN
    assert Compression(name, min_ratio=2.1).encode(plain) == plain_frame(plain)


def test_none_compresses_nothing() -> None:
    assert Compression("none").encode(TEXT) == plain_frame(TEXT)


def huge_payloads() -> dict[str, bytes]:
    """What takes a gibibyte, in a few bytes as far as the format can."""
    stream = zlib.compressobj(9, zlib.DEFLATED, 31)
    gzip = b"".join(stream.compress(bytes(16 * MIB)) for _ in range(16)) + stream.flush()
    return {
        "lz4": lz4.block.compress(bytes(256 * MIB), store_size=False),
        "snappy": b"\x80\x80\x80\x80\x04" + bytes(cramjam.snappy.compress_raw(bytes(MIB)))[3:],
        "gzip": gzip,
    }


HUGE = huge_payloads()


@pytest.mark.parametrize("name", HUGE)
def test_a_bomb_costs_no_memory(name: str) -> None:
    frame = HEADER.pack(codec_of_name(name).number, 1, 0, 64 * KIB) + HUGE[name]
    before_bytes = resident_peak_bytes()
    tracemalloc.start()
    try:
        with pytest.raises(CorruptError):
            decode_frame(frame, 64 * KIB)
        assert tracemalloc.get_traced_memory()[1] < MIB
    finally:
        tracemalloc.stop()
    # What libraries allocate past Python: the bomb itself is 256 MiB and more.
    assert resident_peak_bytes() - before_bytes < 32 * MIB


def resident_peak_bytes() -> int:
    with open("/proc/self/status", encoding="ascii") as file:
        [line] = [line for line in file if line.startswith("VmRSS")]
    return int(line.split()[1]) * KIB


@pytest.mark.parametrize("name", NAMES)
def test_every_cut_is_an_error(name: str) -> None:
    frame = Compression(name).encode(TEXT)
    for size in range(len(frame)):
        with pytest.raises(CorruptError):
            decode_frame(frame[:size], len(TEXT))


@pytest.mark.parametrize("name", NAMES)
def test_a_length_that_is_not_the_frames_is_an_error(name: str) -> None:
    payload = Compression(name).encode(TEXT)[HEADER.size :]
    number = codec_of_name(name).number
    for claimed in (1, len(TEXT) - 1, len(TEXT) + 1, MIB):
        with pytest.raises(CorruptError):
            decode_frame(HEADER.pack(number, 1, 0, claimed) + payload, claimed)


@pytest.mark.parametrize("name", NAMES)
@given(data=st.binary(max_size=200))
def test_any_payload_is_content_or_corrupt(name: str, data: bytes) -> None:
    try:
        plain = decode_frame(HEADER.pack(codec_of_name(name).number, 1, 0, 64) + data, 64)
    except CorruptError:
        return
    assert len(plain) == 64


# ----------------------------------------------------------------------------- choices, and sites
def test_choices_are_parsed_and_checked() -> None:
    assert parse_compression("zstd:19") == Compression("zstd", 19)
    assert parse_compression("lz4", 1.2) == Compression("lz4", None, 1.2)
    assert parse_compression("none") == Compression("none")
    for text, hint in [
        ("zip", "take one of gzip, lz4, none, snappy, zstd"),
        ("zstd:23", "has no level 23: take 1 to 22"),
        ("gzip:0", "take 1 to 9"),
        ("zstd:fast", "a name and a level"),
        ("none:1", "no levels"),
    ]:
        with pytest.raises(UsageError, match=hint):
            parse_compression(text)


def test_a_library_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_made", {"zstd": codec_of_name("zstd")})
    monkeypatch.setattr(module, "_by_number", {1: codec_of_name("zstd")})
    monkeypatch.setitem(sys.modules, "lz4.block", None)
    with pytest.raises(FormatError, match=r"pip install 'cachefs\[lz4\]'"):
        parse_compression("lz4")
    with pytest.raises(FormatError, match=r"pip install 'cachefs\[lz4\]'"):
        decode_frame(HEADER.pack(2, 1, 0, 4) + b"abcd", 4)


class Backwards:
    """A codec of a site."""

    number, name = 200, "backwards"
    levels, default_level = range(1), 0

    def compress(self, plain: bytes | memoryview, level: int) -> bytes:
        return zlib.compress(bytes(plain)[::-1])

    def decompress(self, payload: memoryview, plain_bytes: int) -> bytes:
        return zlib.decompressobj().decompress(payload, plain_bytes)[::-1]


class Colliding(Backwards):
    """Another codec with its number."""


@pytest.fixture
def no_site_codecs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_made", dict(module._made))
    monkeypatch.setattr(module, "_by_number", dict(module._by_number))
    monkeypatch.setattr(module, "_has_site_codecs", False)


@pytest.mark.usefixtures("no_site_codecs")
def test_a_site_registers_its_codec() -> None:
    register(Backwards())
    register(Backwards())  # twice is no harm
    frame = Compression("backwards").encode(TEXT)
    assert frame[0] == 200
    assert decode_frame(frame, len(TEXT)) == TEXT
    with pytest.raises(CorruptError, match="backwards payload"):
        decode_frame(HEADER.pack(200, 1, 0, 4) + b"....", 4)
    with pytest.raises(UsageError, match="in each other's way"):
        register(Colliding())


@pytest.mark.usefixtures("no_site_codecs")
def test_an_entry_point_names_a_codec(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("backwards", f"{__name__}:Backwards", module.ENTRY_POINT_GROUP)
    monkeypatch.setattr(EntryPoint, "load", lambda self: Backwards)
    monkeypatch.setattr(module, "entry_points", lambda group: [point])
    assert codec_of_number(200).name == "backwards"
    assert codec_of_name("backwards").number == 200


@pytest.mark.usefixtures("no_site_codecs")
@pytest.mark.parametrize(
    ("number", "name"), [(1, "mine"), (127, "mine"), (255, "mine"), (130, "lz4")]
)
def test_numbers_and_names_of_cachefs_are_not_for_sites(number: int, name: str) -> None:
    codec = Backwards()
    codec.number, codec.name = number, name
    with pytest.raises(CachefsError):
        register(codec)
