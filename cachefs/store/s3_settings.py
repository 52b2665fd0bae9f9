"""How S3 is reached, as plain values: what `[s3]` of the configuration says, without pydantic.

A fetcher gets them as JSON, and its start is short.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class S3Settings:
    """The keys of `[s3]`; meanings, limits and defaults are in cachefs/config.py."""

    endpoint: str
    region: str
    addressing: str
    profile: str
    credentials_file: str
    ca_file: str
    sse: str
    sse_kms_key: str
    connections: int
    requests_in_flight: int
    connect_timeout_s: float
    read_timeout_s: float
    request_timeout_s: float
    retries: int
    multipart_bytes: int
    part_bytes: int
