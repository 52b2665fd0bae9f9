"""Whatever bytes come: an error or the right thing, and never the wrong one."""

from hypothesis import given, settings
from hypothesis import strategies as st

from cachefs.codec.frame import decode_frame, encode_frame
from cachefs.errors import CorruptError, FormatError, UsageError
from cachefs.model.chunk import chunk_id
from cachefs.model.image import Image, check_image_name
from cachefs.model.manifest import decode_manifest
from cachefs.store.pack import PackWriter, decode_index
from cachefs.units import format_size, parse_size

PLAINS = st.one_of(
    st.binary(min_size=1, max_size=3000),
    st.builds(lambda part, times: part * times, st.binary(min_size=1, max_size=8), st.just(500)),
)


@given(plain=PLAINS, level=st.integers(1, 9))
def test_a_frame_gives_back_what_it_holds(plain: bytes, level: int) -> None:
    assert bytes(decode_frame(encode_frame(plain, level), len(plain))) == plain


@settings(max_examples=300)
@given(plain=PLAINS, where=st.integers(0, 10**9), bit=st.integers(0, 7))
def test_a_frame_with_a_flipped_bit_never_passes_as_its_chunk(
    plain: bytes, where: int, bit: int
) -> None:
    frame = bytearray(encode_frame(plain))
    frame[where % len(frame)] ^= 1 << bit
    try:
        decoded = bytes(decode_frame(bytes(frame), len(plain)))
    except (CorruptError, FormatError):
        return
    assert decoded == plain or chunk_id(decoded) != chunk_id(plain)


@given(data=st.binary(max_size=300), plain_bytes=st.integers(1, 1 << 22))
def test_any_bytes_as_a_frame_are_refused_or_of_the_right_length(
    data: bytes, plain_bytes: int
) -> None:
    try:
        decoded = decode_frame(data, plain_bytes)
    except (CorruptError, FormatError):
        return
    assert len(decoded) == plain_bytes


@given(plains=st.lists(PLAINS, max_size=20))
def test_a_pack_gives_back_its_frames(plains: list[bytes]) -> None:
    writer = PackWriter()
    for plain in plains:
        writer.add(chunk_id(plain), encode_frame(plain), len(plain))
    pack, data = writer.finish()
    rows = decode_index(data, pack, len(data)).tolist()
    decoded = [
        bytes(decode_frame(data[offset : offset + frame_bytes], plain_bytes))
        for _, offset, frame_bytes, plain_bytes in rows
    ]
    assert decoded == plains


@given(head=st.sampled_from([b"", b"CACHEFSM", b"CACHEFSM\1\0\0\0"]), rest=st.binary(max_size=200))
def test_any_bytes_as_a_manifest_are_refused(head: bytes, rest: bytes) -> None:
    try:
        decode_manifest(head + rest, "ab" * 32)
    except (CorruptError, FormatError):
        return
    raise AssertionError("took bytes that do not match their id")


@given(rest=st.binary(max_size=200), tail=st.sampled_from([b"", b"CACHEFSX", b"\1\0\0\0CACHEFSX"]))
def test_any_bytes_as_a_pack_are_refused(rest: bytes, tail: bytes) -> None:
    try:
        decode_index(rest + tail, bytes(32), len(rest + tail))
    except (CorruptError, FormatError):
        return
    raise AssertionError("took bytes that do not match their checksum")


@given(data=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
def test_any_bytes_as_a_record_are_refused(data: bytes) -> None:
    try:
        Image.from_json(data, "here")
    except FormatError:
        return
    raise AssertionError("took bytes that are no record")


@given(name=st.text(max_size=30))
def test_a_name_that_is_taken_stays_in_the_folder_of_images(name: str) -> None:
    try:
        check_image_name(name)
    except UsageError:
        return
    assert all(part and not part.startswith(".") for part in name.split("/"))
    assert name.isprintable()


@given(size_bytes=st.integers(0, 1 << 50))
def test_a_size_reads_as_it_is_written_up_to_rounding(size_bytes: int) -> None:
    found = parse_size(format_size(size_bytes))
    assert abs(found - size_bytes) <= size_bytes * 0.051
