import pytest
from blake3 import blake3

from cachefs.errors import UsageError
from cachefs.model.chunk import check_chunk_bytes, chunk_id, zero_chunk
from cachefs.units import KIB, MIB


def test_a_chunk_is_named_by_the_blake3_of_its_bytes() -> None:
    assert chunk_id(memoryview(b"abc")) == blake3(b"abc").digest()
    assert len(chunk_id(b"")) == 32


def test_zero_chunks_have_no_frame() -> None:
    assert zero_chunk(100).is_zero
    assert zero_chunk(100).plain_bytes == 100


@pytest.mark.parametrize("size", [4 * KIB, 64 * KIB, 4 * MIB])
def test_powers_of_two_are_chunk_sizes(size: int) -> None:
    assert check_chunk_bytes(size) == size


@pytest.mark.parametrize("size", [0, 1, 2 * KIB, 5 * KIB, 4 * KIB + 1, 8 * MIB, -4096])
def test_other_sizes_are_refused(size: int) -> None:
    with pytest.raises(UsageError, match="power of two"):
        check_chunk_bytes(size)
