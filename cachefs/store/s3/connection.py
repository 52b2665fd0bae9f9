"""One client of botocore for a process, made as the settings say, and safe for its threads.

botocore's own retries are off: it would ask again while nobody waits any more, and it never sees a
body that breaks. `retries.py` and the stack ask again.
"""

from __future__ import annotations

import ssl
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from urllib.parse import urlsplit

import botocore.session
from botocore.config import Config
from botocore.credentials import ReadOnlyCredentials
from botocore.exceptions import NoCredentialsError
from botocore.httpsession import URLLib3Session, get_cert_path
from botocore.utils import get_environ_proxies

from cachefs.errors import UsageError
from cachefs.store.s3.direct import DirectConnections
from cachefs.store.s3.faults import mapped
from cachefs.store.s3.signature import Signer
from cachefs.store.s3_settings import S3Settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_DEFAULT_REGION = "us-east-1"
"""What servers other than Amazon's sign with, unless they are told otherwise."""


class Server(NamedTuple):
    """Who serves a bucket: as the client of botocore sees it."""

    name: str
    port: int
    host: str
    """As the header Host has it: with a port where that is not the scheme's own."""
    is_tls: bool


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
    def direct(self) -> DirectConnections | None:
        """Connections for requests that we sign ourselves; None: they go through a proxy."""
        if self._proxies:
            return None
        settings, server = self.settings, self._server
        tls = ssl.create_default_context(cafile=self._authorities) if server.is_tls else None
        return DirectConnections(
            (server.name, server.port),
            server.host,
            tls,
            settings.connections,
            (settings.connect_timeout_s, settings.read_timeout_s),
        )

    @cached_property
    def http(self) -> URLLib3Session:
        """The same through a proxy."""
        settings = self.settings
        timeout: Any = (settings.connect_timeout_s, settings.read_timeout_s)
        verify: Any = self._authorities
        return URLLib3Session(
            verify=verify,
            proxies=self._proxies,
            timeout=timeout,
            max_pool_connections=settings.connections,
        )

    @cached_property
    def signer(self) -> Signer:
        """What signs GETs of ranges."""
        return Signer(self._server.host, self.region)

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

    @cached_property
    def bucket_path(self) -> str:
        """The same without the server."""
        return urlsplit(self.bucket_url).path

    @cached_property
    def _server(self) -> Server:
        url = urlsplit(self.bucket_url)
        is_tls = url.scheme == "https"
        own_port = 443 if is_tls else 80
        port = url.port or own_port
        name = url.hostname or ""
        host = f"[{name}]" if ":" in name else name
        return Server(name, port, host if port == own_port else f"{host}:{port}", is_tls)

    @cached_property
    def _proxies(self) -> dict[str, str]:
        proxies: dict[str, str] = get_environ_proxies(self.bucket_url)
        return proxies if urlsplit(self.bucket_url).scheme in proxies else {}

    @property
    def _authorities(self) -> str:
        bundle: Any = self.settings.ca_file or self._session.get_config_variable("ca_bundle")
        return str(get_cert_path(bundle or True))

    def credentials(self) -> ReadOnlyCredentials:
        """Return the credentials of now: botocore renews those that expire."""
        credentials: Any = self._session.get_credentials()
        if credentials is None:
            raise NoCredentialsError
        frozen: ReadOnlyCredentials = credentials.get_frozen_credentials()
        return frozen
