"""S3 servers for all tests: each starts when the first test asks for it, and ends with the last.

And how hypothesis is to try: on a machine that others use as well the time of an example says
nothing of the code.
"""

import uuid
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.proxies.http_proxy import HttpProxy
from tests.proxies.proxy import closing
from tests.s3.servers import S3Server, rclone, seaweedfs

settings.register_profile(
    "busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("busy machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that have slow tests: of two workers none waits long for the other."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """SeaweedFS, which does what S3 does."""
    with seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


@pytest.fixture(scope="session")
def rclone_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Rclone's server, which knows no conditional writes."""
    with rclone(tmp_path_factory.mktemp("rclone")) as server:
        yield server


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """SeaweedFS; this process and those that it starts know how to reach it."""
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    return s3_server


@pytest.fixture(scope="module")
def proxy(s3_server: S3Server) -> Iterator[HttpProxy]:
    """Between a test and the S3 server, for faults."""
    with closing(HttpProxy(s3_server.address)) as made:
        yield made


@pytest.fixture
def s3_url(s3: S3Server) -> str:
    """The URL of a place in its bucket that nobody else uses."""
    return f"s3://{s3.bucket}/{uuid.uuid4().hex}/store"
