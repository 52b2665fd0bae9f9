"""s3://bucket/prefix."""

from __future__ import annotations

import re
from typing import NamedTuple

from cachefs.errors import UsageError

SCHEME = "s3://"
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")
_PART = re.compile(r"[\w.+=,~ -]+")


class Location(NamedTuple):
    """A bucket, and what all keys in it begin with: empty, or ending in `/`."""

    bucket: str
    prefix: str

    @property
    def url(self) -> str:
        """As people write it."""
        return f"{SCHEME}{self.bucket}/{self.prefix}".rstrip("/")


def parse_location(url: str) -> Location:
    """Return the bucket and prefix of a URL.

    Raises:
        UsageError: it is none. Where the URL may hold a password, the message does not show it.
    """
    bucket, _, path = url.removeprefix(SCHEME).partition("/")
    if "@" in bucket:
        raise UsageError(
            "a store's URL holds no credentials: write s3://bucket/prefix, and give them by "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, ~/.aws/credentials or s3.credentials_file"
        )
    path = path.removesuffix("/")
    parts = path.split("/") if path else []
    is_sound = all(_PART.fullmatch(part) and part not in {".", ".."} for part in parts)
    if not _BUCKET.fullmatch(bucket) or not is_sound:
        raise UsageError(f"store '{url}': write s3://bucket or s3://bucket/prefix")
    return Location(bucket, "".join(f"{part}/" for part in parts))
