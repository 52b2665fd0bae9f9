import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefs.errors import CacheError
from cachefs.index import segments
from cachefs.index.segments import (
    CLASSES,
    INDEX_BITS,
    Segment,
    class_of,
    extent_bytes_for,
    slot_bytes_of,
    slot_class,
)
from cachefs.model.chunk import MAX_CHUNK_BYTES, MIN_CHUNK_BYTES
from cachefs.units import GIB, KIB, MIB, TIB


def used_bytes(segment: Segment) -> int:
    return os.fstat(segment.fd).st_blocks * 512


def test_every_chunk_size_has_its_class() -> None:
    sizes = [slot_bytes_of(number) for number in range(CLASSES)]
    assert sizes[0] == MIN_CHUNK_BYTES
    assert sizes[-1] == MAX_CHUNK_BYTES
    assert [class_of(size) for size in sizes] == list(range(CLASSES))


@given(st.integers(0, CLASSES - 1), st.integers(0, 2**INDEX_BITS - 1))
def test_a_slot_number_says_class_and_place(number: int, index: int) -> None:
    slot = number << INDEX_BITS | index
    assert slot < 2**32
    assert slot_class(slot) == number


@given(st.integers(MIB, 64 * TIB), st.integers(0, CLASSES - 1))
def test_an_extent_is_a_whole_number_of_slots_and_a_small_part_of_the_quota(
    quota_bytes: int, number: int
) -> None:
    slot_bytes = slot_bytes_of(number)
    extent_bytes = extent_bytes_for(quota_bytes, slot_bytes)
    assert extent_bytes % slot_bytes == 0
    assert extent_bytes == slot_bytes or extent_bytes <= min(quota_bytes // 16, 64 * MIB)


def test_extents_of_common_quotas() -> None:
    assert extent_bytes_for(10 * GIB, 64 * KIB) == 64 * MIB
    assert extent_bytes_for(16 * MIB, 4 * KIB) == MIB
    assert extent_bytes_for(MIB, 4 * MIB) == 4 * MIB


def test_slots_lie_behind_each_other(tmp_path: Path) -> None:
    segment = Segment(tmp_path, 4, MIB)
    assert segment.path == tmp_path / "65536"
    assert segment.extent_slots == 16
    assert [segment.position(4 << INDEX_BITS | index) for index in (0, 1, 17)] == [
        0,
        65536,
        17 * 65536,
    ]
    segment.close()


def test_growing_takes_disk_space_and_shrinking_gives_it_back(tmp_path: Path) -> None:
    segment = Segment(tmp_path, 0, MIB)
    assert used_bytes(segment) == 0
    segment.allocate(3)
    assert MIB <= used_bytes(segment) < MIB + 64 * KIB
    segment.allocate(0)
    os.pwrite(segment.fd, b"kept", 3 * MIB)
    segment.release(0)
    assert MIB <= used_bytes(segment) < MIB + 64 * KIB
    assert os.pread(segment.fd, 4, 3 * MIB) == b"kept"
    segment.release(3)
    assert used_bytes(segment) < 64 * KIB
    segment.close()


def test_a_full_disk_is_an_error_that_names_the_segment_and_takes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment = Segment(tmp_path, 0, MIB)
    real = os.posix_fallocate

    def half(fd: int, offset: int, size_bytes: int) -> None:
        real(fd, offset, size_bytes // 2)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", half)
    with pytest.raises(CacheError, match=r"cannot grow the segment .*4096: No space left"):
        segment.allocate(1)
    assert used_bytes(segment) < 64 * KIB
    segment.close()


def test_a_segment_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="4096: No such file"):
        Segment(tmp_path / "nowhere", 0, MIB)


def test_space_that_cannot_be_given_back_is_an_error(tmp_path: Path) -> None:
    segment = Segment(tmp_path, 0, MIB)
    segment.close()
    with pytest.raises(CacheError, match="cannot give disk space back: Bad file descriptor"):
        segments._punch_hole(segment.fd, 0, MIB)
