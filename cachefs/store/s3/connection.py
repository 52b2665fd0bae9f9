"""One client of botocore for a process, made as the settings say, and safe for its threads.

botocore's own retries are off: it would ask again while nobody waits any more, and it never sees a
body that breaks. `retries.py` and the stack ask again.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, cast
from urllib.request import getproxies

import botocore.session
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import NoCredentialsError
from botocore.httpsession import URLLib3Session

from cachefs.errors import UsageError
from cachefs.store.s3.faults import mapped
from cachefs.store.s3_settings import S3Settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_DEFAULT_REGION = "us-east-1"
"""What servers other than Amazon's sign with, unless they are told otherwise."""


class Connection:
    """Client, credentials and HTTP connections; nothing is sent when it is made."""

    def __init__(self, settings: S3Settings, bucket: str) -> None:
        self.settings = settings
        self.bucket = bucket
        session = botocore.session.Session(profile=settings.profile or None)
        if settings.credentials_file:
            session.set_config_variable("credentials_file", settings.credentials_file)
        self._session = session

    @cached_property
    def client(self) -> S3Client:
        """The client; its own answers are in `mapped`'s hands."""
        settings = self.settings
        path_style = settings.addressing == "auto" and settings.endpoint
        s3: Any = {"addressing_style": "path" if path_style else settings.addressing}
        with mapped("connect to S3"):
            try:
                client = self._session.create_client(
                    "s3",
                    region_name=self.region,
                    endpoint_url=settings.endpoint or None,
                    verify=settings.ca_file or None,
                    config=Config(
                        signature_version="s3v4",
                        s3=s3,
                        max_pool_connections=settings.connections,
                        connect_timeout=settings.connect_timeout_s,
                        read_timeout=settings.read_timeout_s,
                        retries={"total_max_attempts": 1},
                        # Servers other than Amazon's stumble over trailing checksums; ours are in
                        # Content-MD5, in the signature and in the ids of what we read.
                        request_checksum_calculation="when_required",
                        response_checksum_validation="when_required",
                    ),
                )
            except ValueError as error:
                raise UsageError(f"s3.endpoint '{settings.endpoint}': {error}") from error
        return cast("S3Client", client)

    @cached_property
    def http(self) -> URLLib3Session:
        """Connections for requests that we sign ourselves."""
        settings = self.settings
        bundle: Any = settings.ca_file or self._session.get_config_variable("ca_bundle")
        timeout: Any = (settings.connect_timeout_s, settings.read_timeout_s)
        return URLLib3Session(
            verify=bundle or True,
            proxies=getproxies(),
            timeout=timeout,
            max_pool_connections=settings.connections,
        )

    @cached_property
    def bucket_url(self) -> str:
        """What the URL of every object begins with, as botocore makes it."""
        key = "key"
        url = self.client.generate_presigned_url(
            "get_object", Params={"Bucket": self.bucket, "Key": key}
        )
        return url.partition("?")[0].removesuffix(key)

    @cached_property
    def region(self) -> str:
        """The region, as told, as boto3's configuration has it, or the usual one of a server."""
        found = self.settings.region or self._session.get_config_variable("region")
        return str(found or _DEFAULT_REGION)

    def credentials(self) -> Credentials:
        """Return the credentials of now: botocore renews those that expire."""
        credentials: Any = self._session.get_credentials()
        if credentials is None:
            raise NoCredentialsError
        frozen: Credentials = credentials.get_frozen_credentials()
        return frozen
