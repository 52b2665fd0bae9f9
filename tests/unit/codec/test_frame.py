import os
import tracemalloc

import pytest
import zstandard

from cachefs.codec.frame import HEADER, PLAIN, ZSTD, decode_frame, encode_frame
from cachefs.errors import CorruptError, FormatError
from cachefs.units import GIB, MIB

TEXT = b"all work and no play makes jack a dull boy. " * 100
NOISE = os.urandom(4096)


@pytest.mark.parametrize("plain", [TEXT, NOISE, b"x", bytes(4 * MIB)])
def test_a_frame_gives_back_what_it_holds(plain: bytes) -> None:
    assert bytes(decode_frame(encode_frame(plain), len(plain))) == plain
    assert bytes(decode_frame(memoryview(encode_frame(memoryview(plain))), len(plain))) == plain


def test_what_does_not_shrink_is_kept_plain() -> None:
    assert HEADER.unpack_from(encode_frame(NOISE))[0] == PLAIN
    assert len(encode_frame(NOISE)) == len(NOISE) + HEADER.size
    assert HEADER.unpack_from(encode_frame(TEXT))[0] == ZSTD


def test_a_higher_level_is_smaller() -> None:
    words = b"".join(b"%d " % (number * number) for number in range(20_000))
    assert len(encode_frame(words, 19)) < len(encode_frame(words, 1))


@pytest.mark.parametrize("plain", [TEXT, NOISE])
def test_every_cut_is_an_error(plain: bytes) -> None:
    frame = encode_frame(plain)
    for size in range(len(frame)):
        with pytest.raises(CorruptError):
            decode_frame(frame[:size], len(plain))


def test_a_frame_of_another_length_is_refused() -> None:
    with pytest.raises(CorruptError, match="claims 4096 bytes where the chunk has 4095"):
        decode_frame(encode_frame(NOISE), 4095)


@pytest.mark.parametrize(("codec", "version"), [(5, 1), (ZSTD, 2), (255, 255)])
def test_a_later_codec_or_version_asks_for_a_newer_cachefs(codec: int, version: int) -> None:
    frame = HEADER.pack(codec, version, 0, 4) + b"abcd"
    with pytest.raises(FormatError, match="newer cachefs"):
        decode_frame(frame, 4)


def test_a_bomb_costs_no_memory() -> None:
    bomb = zstandard.ZstdCompressor().compressobj(size=GIB)
    payload = b"".join(bomb.compress(bytes(16 * MIB)) for _ in range(64)) + bomb.flush()
    frame = HEADER.pack(ZSTD, 1, 0, 4096) + payload
    tracemalloc.start()
    try:
        with pytest.raises(CorruptError, match="claims another length"):
            decode_frame(frame, 4096)
        assert tracemalloc.get_traced_memory()[1] < MIB
    finally:
        tracemalloc.stop()


def test_a_payload_that_does_not_say_its_length_is_refused() -> None:
    payload = zstandard.ZstdCompressor(write_content_size=False).compress(TEXT)
    with pytest.raises(CorruptError):
        decode_frame(HEADER.pack(ZSTD, 1, 0, len(TEXT)) + payload, len(TEXT))
