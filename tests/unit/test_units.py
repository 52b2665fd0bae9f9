import pytest

from cachefs.errors import UsageError
from cachefs.units import GIB, KIB, MIB, TIB, format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("4096", 4096),
        ("64KiB", 64 * KIB),
        ("64 kib", 64 * KIB),
        ("1.5G", 3 * GIB // 2),
        ("10GB", 10_000_000_000),
        (" 2M ", 2 * MIB),
        ("1T", TIB),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "KiB", "-1", "1 2", "64KQ", "1e3", "0x10"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 B"), (512, "512 B"), (1536, "1.5 KiB"), (64 * KIB, "64 KiB"), (5 * TIB, "5.0 TiB")],
)
def test_sizes_are_written_in_binary_units(size_bytes: int, text: str) -> None:
    assert format_size(size_bytes) == text
