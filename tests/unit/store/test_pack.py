import os

import pytest
from blake3 import blake3

from cachefs.codec.frame import encode_frame
from cachefs.errors import CorruptError, FormatError
from cachefs.model.chunk import chunk_id
from cachefs.store.pack import PackWriter, check_header, decode_index, index_bytes

CHUNKS = [os.urandom(50), b"a" * 4096, os.urandom(300)]


def make_pack() -> tuple[bytes, bytes]:
    writer = PackWriter()
    for chunk in CHUNKS:
        writer.add(chunk_id(chunk), encode_frame(chunk), len(chunk))
    return writer.finish()


PACK, DATA = make_pack()


def test_a_pack_is_named_by_its_content_and_describes_itself() -> None:
    assert blake3(DATA).digest() == PACK
    check_header(DATA, PACK)
    rows = decode_index(DATA, PACK, len(DATA)).tolist()
    assert [row[0] for row in rows] == [chunk_id(chunk) for chunk in CHUNKS]
    assert [row[3] for row in rows] == [len(chunk) for chunk in CHUNKS]
    for (_, offset, frame_bytes, _), chunk in zip(rows, CHUNKS, strict=True):
        assert DATA[offset : offset + frame_bytes] == encode_frame(chunk)


def test_a_writer_says_where_it_put_a_frame() -> None:
    writer = PackWriter()
    frames = [encode_frame(chunk) for chunk in CHUNKS]
    offsets = [writer.add(bytes(32), frame, 1) for frame in frames]
    assert offsets == [16, 16 + len(frames[0]), 16 + len(frames[0]) + len(frames[1])]
    assert len(writer) == 3


def test_the_index_can_be_read_from_the_end_alone() -> None:
    tail = DATA[-index_bytes(DATA[-100:], PACK) :]
    assert (
        decode_index(tail, PACK, len(DATA)).tolist() == decode_index(DATA, PACK, len(DATA)).tolist()
    )


def test_every_flipped_bit_of_index_and_footer_is_found() -> None:
    first = len(DATA) - index_bytes(DATA, PACK)
    for bit in range(first * 8, len(DATA) * 8):
        damaged = bytearray(DATA)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises((CorruptError, FormatError)):
            decode_index(bytes(damaged), PACK, len(damaged))


def test_every_cut_is_found() -> None:
    for size in range(len(DATA)):
        with pytest.raises((CorruptError, FormatError)):
            decode_index(DATA[:size], PACK, size)


def test_bytes_behind_the_footer_are_found() -> None:
    with pytest.raises((CorruptError, FormatError)):
        decode_index(DATA + b"x", PACK, len(DATA) + 1)


@pytest.mark.parametrize("foreign", [b"", b"#!/bin/sh", os.urandom(1000)])
def test_a_foreign_file_is_named_as_one(foreign: bytes) -> None:
    with pytest.raises(FormatError, match="foreign file"):
        decode_index(foreign, PACK, len(foreign))
    with pytest.raises(FormatError, match="foreign file"):
        check_header(foreign, PACK)


def test_a_later_format_asks_for_a_newer_cachefs() -> None:
    later = DATA[:-12] + (2).to_bytes(4, "little") + DATA[-8:]
    with pytest.raises(FormatError, match=r"format 2.*newer cachefs"):
        decode_index(later, PACK, len(later))
    later = DATA[:8] + (2).to_bytes(4, "little") + DATA[12:]
    with pytest.raises(FormatError, match=r"format 2.*newer cachefs"):
        check_header(later, PACK)


@pytest.mark.parametrize("offset", [0, 15, 2**32 - 1])
def test_an_index_that_points_outside_the_frames_is_refused(offset: int) -> None:
    writer = PackWriter()
    writer.add(bytes(32), b"frame", 5)
    writer._rows[0] = (bytes(32), offset, 5, 5)
    pack, data = writer.finish()
    with pytest.raises(CorruptError, match="a frame leaves it"):
        decode_index(data, pack, len(data))
