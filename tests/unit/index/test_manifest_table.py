import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachefs.errors import CacheError, TableDamagedError
from cachefs.index.manifest_table import (
    PAGE_BYTES,
    PAGE_RECORDS,
    ManifestTable,
    PageCache,
    write_table,
)
from cachefs.model.chunk import ChunkRef, zero_chunk
from cachefs.model.manifest import RECORD_DTYPE, Manifest, runs_of
from cachefs.units import MIB, TIB
from tests.stores import flip

CHUNK = 4096


def manifest_of(
    indexes: list[int], chunk_count: int, short_bytes: int = 0, packs: int = 3
) -> Manifest:
    """Make a manifest with data at these chunk indexes, every record of them another."""
    records = np.zeros(len(indexes), RECORD_DTYPE)
    for row, index in enumerate(indexes):
        records[row] = (
            index.to_bytes(32, "little"),
            index % packs,
            index * 7 % 2**32,
            index % 99 + 1,
        )
    return Manifest(
        max(0, chunk_count * CHUNK - short_bytes),
        CHUNK,
        runs_of(np.array(indexes, np.uint64)),
        tuple(bytes([number]) * 32 for number in range(packs)),
        records,
    )


def expected_chunk(manifest: Manifest, index: int, indexes: list[int], packs: int = 3) -> ChunkRef:
    plain_bytes = manifest.plain_bytes(index)
    if index not in indexes:
        return zero_chunk(plain_bytes)
    pack = bytes([index % packs]) * 32
    return ChunkRef(
        index.to_bytes(32, "little"), plain_bytes, pack, index * 7 % 2**32, index % 99 + 1
    )


@contextmanager
def opened(manifest: Manifest, pages: PageCache | None = None) -> Iterator[ManifestTable]:
    with TemporaryDirectory() as name:
        path = Path(name) / "table"
        write_table(manifest, path)
        table = ManifestTable(path, pages or PageCache(MIB))
        yield table
        table.close()


@settings(max_examples=80)
@given(
    st.sets(st.integers(0, 400)),
    st.integers(1, 20),
    st.integers(0, CHUNK - 1),
    st.sampled_from([PAGE_BYTES, MIB]),
)
def test_every_record_is_the_manifests(
    found: set[int], more: int, short_bytes: int, cache_bytes: int
) -> None:
    indexes = sorted(found)
    count = max(found, default=0) + more
    manifest = manifest_of(indexes, count, short_bytes)
    with opened(manifest, PageCache(cache_bytes)) as table:
        assert (table.size_bytes, table.chunk_bytes) == (manifest.size_bytes, CHUNK)
        for index in range(count):
            expected = expected_chunk(manifest, index, indexes)
            assert table.chunk(index) == expected
            assert table.id_at(index) == expected.id
        keys, places = table.keys()
        assert keys.tolist() == places.tolist() == indexes
        assert set(table.ids()) == {index.to_bytes(32, "little") for index in indexes}


@pytest.mark.parametrize("count", [1, PAGE_RECORDS - 1, PAGE_RECORDS, PAGE_RECORDS + 1, 1000])
def test_dense_images_at_the_edges_of_pages(count: int) -> None:
    indexes = list(range(count))
    manifest = manifest_of(indexes, count)
    with opened(manifest) as table:
        for index in (0, count // 2, count - 1):
            assert table.chunk(index) == expected_chunk(manifest, index, indexes)


def test_an_empty_image_has_a_table() -> None:
    with opened(manifest_of([], 0)) as table:
        assert table.size_bytes == 0
        assert table.ids() == []


def test_a_sparse_image_of_terabytes_has_a_small_table(tmp_path: Path) -> None:
    last = 8 * TIB // CHUNK - 1
    manifest = manifest_of([0, last], last + 1)
    write_table(manifest, tmp_path / "table")
    assert (tmp_path / "table").stat().st_size < 1000
    table = ManifestTable(tmp_path / "table", PageCache(MIB))
    assert table.chunk(last) == expected_chunk(manifest, last, [0, last])
    assert table.chunk(last // 2).is_zero
    table.close()


def _damaged_table_is_never_wrong(path: Path, manifest: Manifest, indexes: list[int]) -> bool:
    """Read all records of a damaged table; returns whether the damage was noticed."""
    count = manifest.chunk_count
    try:
        table = ManifestTable(path, PageCache(MIB))
    except TableDamagedError:
        return True
    noticed = False
    for index in range(count):
        expected = expected_chunk(manifest, index, indexes)
        try:
            assert table.chunk(index) == expected
            assert table.id_at(index) == expected.id
        except TableDamagedError:
            noticed = True
    table.close()
    return noticed


def test_no_flipped_bit_becomes_a_wrong_record(tmp_path: Path) -> None:
    indexes = [0, 1, 2, 70, 71, 200, 201, 202]
    manifest = manifest_of(indexes, 210)
    path = tmp_path / "table"
    write_table(manifest, path)
    for offset in range(path.stat().st_size):
        bit = offset % 8
        flip(path, offset, bit)
        assert _damaged_table_is_never_wrong(path, manifest, indexes), f"bit {bit} of {offset}"
        flip(path, offset, bit)
    assert not _damaged_table_is_never_wrong(path, manifest, indexes)


def test_a_flipped_length_does_not_cost_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "table"
    write_table(manifest_of([0], 1), path)
    flip(path, 15, 7)  # the highest bit of the header's length: 2 GiB more
    asked: list[int] = []
    real = os.pread

    def counted(fd: int, size_bytes: int, offset: int) -> bytes:
        asked.append(size_bytes)
        return real(fd, size_bytes % MIB, offset)

    monkeypatch.setattr(os, "pread", counted)
    with pytest.raises(TableDamagedError):
        ManifestTable(path, PageCache(MIB))
    assert max(asked) < MIB


def test_a_flipped_bit_in_a_page_fails_the_read_of_all_keys(tmp_path: Path) -> None:
    path = tmp_path / "table"
    write_table(manifest_of(list(range(300)), 300), path)
    table = ManifestTable(path, PageCache(MIB))
    flip(path, path.stat().st_size - 2 * PAGE_BYTES, 3)
    with pytest.raises(TableDamagedError, match="is damaged"):
        table.keys()
    table.close()


def test_a_table_that_was_cut_is_damaged_wherever_it_was(tmp_path: Path) -> None:
    indexes = list(range(100))
    manifest = manifest_of(indexes, 100)
    path = tmp_path / "table"
    write_table(manifest, path)
    whole = path.read_bytes()
    for size in [*range(0, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:size])
        assert _damaged_table_is_never_wrong(path, manifest, indexes), f"cut at {size}"


def test_a_foreign_file_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "table").write_bytes(b"CACHEFSM" + bytes(100))
    with pytest.raises(TableDamagedError, match="no local table"):
        ManifestTable(tmp_path / "table", PageCache(MIB))


def test_two_tables_do_not_mix_their_pages(tmp_path: Path) -> None:
    pages = PageCache(MIB)
    first = manifest_of(list(range(10)), 10)
    second = manifest_of(list(range(5, 15)), 15)
    for number, manifest in enumerate([first, second]):
        write_table(manifest, tmp_path / str(number))
    one = ManifestTable(tmp_path / "0", pages)
    assert one.id_at(5) == (5).to_bytes(32, "little")
    one.close()
    two = ManifestTable(tmp_path / "1", pages)  # as a rule with the same fd
    assert two.id_at(5) == (5).to_bytes(32, "little")
    assert two.id_at(0) == b""
    assert two.id_at(14) == (14).to_bytes(32, "little")
    two.close()


def test_pages_are_bounded() -> None:
    pages = PageCache(3 * PAGE_BYTES)
    indexes = list(range(PAGE_RECORDS * 10))
    with opened(manifest_of(indexes, len(indexes)), pages) as table:
        for index in indexes:
            assert table.id_at(index)
            assert pages.size_bytes <= 3 * PAGE_BYTES
    assert PageCache(0).size_bytes == 0


def test_a_table_is_complete_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "table"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", _fail)
        with pytest.raises(CacheError, match=r"cannot write .*table: No space left"):
            write_table(manifest_of([0], 1), path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(CacheError, match="No such file"):
        write_table(manifest_of([0], 1), tmp_path / "nowhere" / "table")


def _fail(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_table_on_a_disk_that_cannot_read_is_to_be_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_table(manifest_of([0], 1), tmp_path / "table")
    table = ManifestTable(tmp_path / "table", PageCache(MIB))
    monkeypatch.setattr(os, "pread", _fail)
    with pytest.raises(TableDamagedError, match="cannot read"):
        table.chunk(0)
    table.close()


def test_a_table_can_be_used_by_whoever_has_it_when_others_gave_it_up(tmp_path: Path) -> None:
    write_table(manifest_of([0], 1), tmp_path / "table")
    table = ManifestTable(tmp_path / "table", PageCache(MIB))
    before = len(os.listdir("/proc/self/fd"))
    del table
    assert len(os.listdir("/proc/self/fd")) == before - 1
