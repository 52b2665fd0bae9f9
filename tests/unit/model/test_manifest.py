import json
from collections.abc import Sequence

import numpy as np
import pytest
import zstandard
from blake3 import blake3

from cachefs.errors import CorruptError, FormatError
from cachefs.model.manifest import (
    RECORD_DTYPE,
    RUN_DTYPE,
    Manifest,
    decode_manifest,
    encode_manifest,
    runs_of,
)


def make_manifest(indexes: Sequence[int], size_bytes: int, chunk_bytes: int = 4096) -> Manifest:
    records = np.zeros(len(indexes), RECORD_DTYPE)
    for row, index in enumerate(indexes):
        records[row] = (index.to_bytes(32, "big"), row % 2, 16 + row * 10, 10)
    runs = runs_of(np.array(indexes, np.uint64))
    packs = (b"p" * 32, b"q" * 32) if indexes else ()
    return Manifest(size_bytes, chunk_bytes, runs, packs, records)


def id_of(data: bytes) -> str:
    return str(blake3(data).hexdigest())


MANIFEST = make_manifest([0, 1, 2, 5, 6, 9], 9 * 4096 + 100)
ENCODED = encode_manifest(MANIFEST)


def assert_same(left: Manifest, right: Manifest) -> None:
    assert (left.size_bytes, left.chunk_bytes) == (right.size_bytes, right.chunk_bytes)
    assert left.packs == right.packs
    assert left.runs.tolist() == right.runs.tolist()
    assert left.records.tolist() == right.records.tolist()


@pytest.mark.parametrize(
    "manifest", [MANIFEST, make_manifest([], 0), make_manifest([], 10**15), make_manifest([0], 1)]
)
def test_a_manifest_comes_back_as_it_was(manifest: Manifest) -> None:
    data = encode_manifest(manifest)
    assert_same(decode_manifest(data, id_of(data)), manifest)


def test_a_manifest_knows_its_chunks() -> None:
    assert MANIFEST.chunk_count == 10
    assert MANIFEST.indexes().tolist() == [0, 1, 2, 5, 6, 9]
    assert (MANIFEST.plain_bytes(8), MANIFEST.plain_bytes(9)) == (4096, 100)
    assert make_manifest([], 0).chunk_count == 0


def test_runs_cover_neighbours() -> None:
    runs = runs_of(np.array([0, 1, 2, 5, 6, 9], np.uint64))
    assert runs.tolist() == [(0, 3), (5, 2), (9, 1)]


def test_every_flipped_bit_is_found() -> None:
    for bit in range(len(ENCODED) * 8):
        data = bytearray(ENCODED)
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises((CorruptError, FormatError)):
            decode_manifest(bytes(data), id_of(ENCODED))


def test_every_cut_is_found() -> None:
    for size in range(len(ENCODED)):
        with pytest.raises((CorruptError, FormatError)):
            decode_manifest(ENCODED[:size], id_of(ENCODED))


def test_a_later_format_asks_for_a_newer_cachefs() -> None:
    data = ENCODED[:8] + (2).to_bytes(4, "little") + ENCODED[12:]
    with pytest.raises(FormatError, match=r"format 2.*newer cachefs"):
        decode_manifest(data, id_of(data))


def test_a_foreign_file_is_named_as_one() -> None:
    data = b"#!/bin/sh\n" * 10
    with pytest.raises(FormatError, match="foreign"):
        decode_manifest(data, id_of(data))


def crafted(manifest: Manifest, **header: int) -> bytes:
    """A manifest with a right id whose header or table lies."""
    data = encode_manifest(manifest)
    length = int.from_bytes(data[12:16], "little")
    changed = json.dumps(json.loads(data[16 : 16 + length]) | header).encode()
    return data[:12] + len(changed).to_bytes(4, "little") + changed + data[16 + length :]


@pytest.mark.parametrize(
    "header",
    [
        {"records": 5},
        {"records": 2**40},
        {"records": -6, "runs": 20},
        {"size_bytes": 4096},
        {"size_bytes": -1},
        {"chunk_bytes": 4097},
        {"packs": 2**31},
    ],
)
def test_a_header_that_does_not_fit_is_refused(header: dict[str, int]) -> None:
    data = crafted(MANIFEST, **header)
    with pytest.raises(FormatError, match="cannot be understood"):
        decode_manifest(data, id_of(data))


@pytest.mark.parametrize(
    "runs",
    [
        [(0, 5), (4, 1)],
        [(4, 1), (0, 5)],
        [(0, 3), (3, 3)],
        [(0, 6), (9, 0)],
        [(5, 6)],
        [(2**64 - 1, 6)],
        [(0, 2**64 - 1), (3, 7)],
    ],
)
def test_runs_that_overlap_touch_or_leave_the_image_are_refused(
    runs: list[tuple[int, int]],
) -> None:
    lying = Manifest(
        MANIFEST.size_bytes, 4096, np.array(runs, RUN_DTYPE), MANIFEST.packs, MANIFEST.records
    )
    data = encode_manifest(lying)
    with pytest.raises(FormatError, match="runs"):
        decode_manifest(data, id_of(data))


@pytest.mark.parametrize(("field", "value"), [("pack", 2), ("frame_bytes", 0)])
def test_records_that_point_nowhere_are_refused(field: str, value: int) -> None:
    records = MANIFEST.records.copy()
    records[field][3] = value
    lying = Manifest(MANIFEST.size_bytes, 4096, MANIFEST.runs, MANIFEST.packs, records)
    data = encode_manifest(lying)
    with pytest.raises(FormatError, match="a record"):
        decode_manifest(data, id_of(data))


def test_a_table_that_unfolds_to_more_than_it_says_is_not_unfolded() -> None:
    head = ENCODED[: 16 + int.from_bytes(ENCODED[12:16], "little")]
    data = head + zstandard.ZstdCompressor().compress(bytes(100_000_000))
    with pytest.raises(FormatError, match="another size"):
        decode_manifest(data, id_of(data))
