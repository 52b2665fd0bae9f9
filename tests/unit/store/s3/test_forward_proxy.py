"""Range GETs where the environment names a proxy, and where it says that the server needs none."""

from collections.abc import Iterator

import pytest

from cachefs.store.s3.connection import Connection
from cachefs.store.s3.range_reader import read_range
from tests.proxies.http_proxy import HttpProxy
from tests.proxies.proxy import closing
from tests.s3.servers import S3Server

DATA = bytes(range(256)) * 16


@pytest.fixture
def proxy(s3: S3Server) -> Iterator[HttpProxy]:
    with closing(HttpProxy(s3.address)) as made:
        yield made


@pytest.mark.parametrize("no_proxy", ["", "127.0.0.1"])
def test_a_proxy_of_the_environment(
    s3: S3Server, proxy: HttpProxy, monkeypatch: pytest.MonkeyPatch, no_proxy: str
) -> None:
    s3.client().put_object(Bucket=s3.bucket, Key="proxied/a b", Body=DATA)
    monkeypatch.setenv("HTTP_PROXY", proxy.endpoint)
    monkeypatch.setenv("http_proxy", proxy.endpoint)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, no_proxy)
    connection = Connection(s3.settings(), s3.bucket)
    for offset in (0, 100):
        found = read_range(connection, "proxied/a b", offset, 1000, "read a test object")
        assert found == DATA[offset : offset + 1000]
    asked = [head for head in proxy.heads if "/proxied/" in head.split("\r\n", 1)[0]]
    assert len(asked) == (0 if no_proxy else 2)
