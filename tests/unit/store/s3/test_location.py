import pytest

from cachefs.errors import UsageError
from cachefs.store.s3.location import parse_location
from cachefs.store.store import open_objects


@pytest.mark.parametrize(
    ("url", "bucket", "prefix", "shown"),
    [
        ("s3://images", "images", "", "s3://images"),
        ("s3://images/", "images", "", "s3://images"),
        ("s3://images/prod", "images", "prod/", "s3://images/prod"),
        ("s3://images/prod/", "images", "prod/", "s3://images/prod"),
        ("s3://my.images-1/a b/c_d=1", "my.images-1", "a b/c_d=1/", "s3://my.images-1/a b/c_d=1"),
    ],
)
def test_a_url_names_a_bucket_and_a_prefix(url: str, bucket: str, prefix: str, shown: str) -> None:
    found = parse_location(url)
    assert (found.bucket, found.prefix, found.url) == (bucket, prefix, shown)


@pytest.mark.parametrize(
    "url",
    ["s3://", "s3:///prod", "s3://a", "s3://im ages", "s3://images//prod", "s3://images/../b",
     "s3://images/a?endpoint=x", "s3://images/a#b"],
)  # fmt: skip
def test_what_is_no_url_of_a_store_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="write s3://"):
        parse_location(url)
    with pytest.raises(UsageError):
        open_objects(url)


def test_credentials_in_a_url_are_refused_and_not_shown() -> None:
    with pytest.raises(UsageError) as caught:
        parse_location("s3://AKIAXXX:geheim@images/prod")
    assert "geheim" not in str(caught.value)
    assert "AKIAXXX" not in str(caught.value)
