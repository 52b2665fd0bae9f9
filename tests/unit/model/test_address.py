import pytest

from cachefs.errors import UsageError
from cachefs.model.address import L2Address, parse_l2_address


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("redis://a", ("redis", False, (("a", 6379),))),
        ("rediss://a.example:7000/3", ("redis", True, (("a.example", 7000),), "", "", 3)),
        ("redis://[::1]:7000", ("redis", False, (("::1", 7000),))),
        ("redis://[fe80::1]", ("redis", False, (("fe80::1", 6379),))),
        ("redis+unix:///run/redis.sock", ("redis", False, (), "/run/redis.sock")),
        (
            "redis+sentinel://a,b:1/frames/2",
            ("sentinel", False, (("a", 26379), ("b", 1)), "", "frames", 2),
        ),
        ("rediss+sentinel://a/frames", ("sentinel", True, (("a", 26379),), "", "frames")),
        ("redis+cluster://a:1,b:2", ("cluster", False, (("a", 1), ("b", 2)))),
        ("memcached://a,b:2", ("memcached", False, (("a", 11211), ("b", 2)))),
        ("memcacheds://a", ("memcached", True, (("a", 11211),))),
    ],
)
def test_addresses_are_understood(text: str, expected: tuple[object, ...]) -> None:
    assert parse_l2_address(text) == L2Address(text, *expected)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a:6379",
        "http://a",
        "redis://",
        "redis://a,b",
        "redis://a:0",
        "redis://a:65536",
        "redis://a:port",
        "redis://a/x",
        "redis://a/-1",
        "redis://a b",
        "redis+unix://relative",
        "redis+sentinel://a",
        "redis+sentinel://a/",
        "redis+cluster://a/1",
        "memcached://a/1",
        "memcached://a,,b",
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_l2_address(text)


@pytest.mark.parametrize(
    "text", ["redis://u:secret@a", "redis://:secret@a/1", "memcached://secret@a"]
)
def test_a_password_in_an_address_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(UsageError, match="password_file") as caught:
        parse_l2_address(text)
    assert "secret" not in str(caught.value)
