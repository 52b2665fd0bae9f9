"""What the settings of S3 do: trust, encryption, profiles, and their way from the configuration."""

import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

import pytest

from cachefs.config import Config, FetchSection, S3Section, load_config, parse_mount_options
from cachefs.errors import ConfigError, StoreRefusedError, StoreUnavailableError
from cachefs.store.s3.objects import open_s3
from cachefs.store.s3_settings import S3Settings
from cachefs.store.store import configured_s3, create_store, open_store
from tests.proxies.faults import Fault
from tests.proxies.http_proxy import HttpProxy
from tests.proxies.proxy import closing
from tests.s3.servers import S3Server

TLS = Path(__file__).parents[3] / "s3/tls.pem"
"""A key and a certificate for 127.0.0.1 that nobody trusts."""


@pytest.fixture
def https_endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server that answers everything with the ten bytes from 0 to 9."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS)
    listener = socket.create_server(("127.0.0.1", 0))
    head = b"HTTP/1.1 206 Said\r\nContent-Length: 10\r\nContent-Range: bytes 0-9/10\r\nETag: e\r\n"

    def run() -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            with suppress(OSError), context.wrap_socket(plain, server_side=True) as connection:
                connection.recv(65536)
                connection.sendall(head + b"Connection: close\r\n\r\n0123456789")

    thread = threading.Thread(target=run)
    thread.start()
    yield f"https://127.0.0.1:{listener.getsockname()[1]}"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(10)


def settings(**values: object) -> S3Settings:
    return S3Settings(**S3Section.model_validate({"retries": 0, **values}).model_dump())


def test_a_certificate_is_trusted_if_we_are_told_so(https_endpoint: str) -> None:
    trusting = open_s3("s3://bucket/a", settings(endpoint=https_endpoint, ca_file=str(TLS)))
    assert trusting.get_range("key", 0, 10) == b"0123456789"
    assert trusting.get("key")[0] == b"0123456789"
    wary = open_s3("s3://bucket/a", settings(endpoint=https_endpoint))
    for read in (lambda: wary.get_range("key", 0, 10), lambda: wary.get("key")):
        with pytest.raises(StoreRefusedError, match=r"not trusted: see s3\.ca_file"):
            read()


def test_encryption_is_asked_for_at_each_write(s3: S3Server, s3_url: str) -> None:
    """The server here has no keys, so what counts is what it is asked for."""
    part = 5 * 1024 * 1024
    kms = {"sse": "aws:kms", "sse_kms_key": "a-key"}
    with closing(HttpProxy(s3.address)) as proxy:
        proxy.script.play_always(Fault("status"), lambda call: not call.startswith("HEAD "))
        for options, wanted in (({}, 0), ({"sse": "AES256"}, 1), (kms, 1)):
            place = open_s3(
                s3_url,
                s3.settings(endpoint=proxy.endpoint, multipart_bytes=part, **options),
            )
            for data in (b"1", bytes(part + 1)):
                proxy.heads.clear()
                with pytest.raises(StoreUnavailableError):
                    place.put("packs/a", data)
                [head] = [head for head in proxy.heads if head.startswith(("put ", "post "))]
                asked = f"x-amz-server-side-encryption: {options.get('sse', '').lower()}"
                assert head.count(asked) == wanted
                key = "x-amz-server-side-encryption-aws-kms-key-id: a-key"
                assert (key in head) == (options is kms)


def test_a_profile_that_is_not_there_is_named(s3: S3Server) -> None:
    with pytest.raises(StoreRefusedError, match="no-such-profile"):
        open_s3("s3://images/a", s3.settings(profile="no-such-profile")).get("cachefs.json")


def test_fetchers_know_every_setting_by_its_name_in_the_configuration() -> None:
    assert [field.name for field in fields(S3Settings)] == list(S3Section.model_fields)
    sent = S3Settings(**Config().fetchers_s3().model_dump())
    assert S3Settings(**json.loads(json.dumps(Config().fetchers_s3().model_dump()))) == sent


@pytest.mark.parametrize(("deadline_s", "job_timeout_s"), [(30, 60), (3, 60), (30, 2), (0.3, 0.5)])
def test_a_hung_server_leaves_a_read_time_for_another_try(
    deadline_s: float, job_timeout_s: float
) -> None:
    fetch = FetchSection(read_deadline_s=deadline_s, job_timeout_s=job_timeout_s)
    found = Config(fetch=fetch).fetchers_s3()
    assert found.connect_timeout_s + found.read_timeout_s < deadline_s
    assert found.request_timeout_s < job_timeout_s
    assert found.retries == 0


def test_the_kernel_reads_further_ahead_on_s3_unless_told() -> None:
    for url, text, expected in (
        ("s3://images/a", "", 8 << 20),
        ("/srv/images", "", 1 << 20),
        ("s3://images/a", "read_ahead=1MiB", 1 << 20),
    ):
        overrides: dict[str, dict[str, object]] = {"store": {"url": url}}
        overrides |= parse_mount_options(text)
        assert load_config(None, overrides).read_ahead_bytes() == expected


def test_the_environment_is_above_the_file_and_below_the_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cachefs.toml"
    path.write_text('[s3]\nregion = "file"\nprofile = "file"\nendpoint = "http://file"\n')
    monkeypatch.setenv("CACHEFS_S3_REGION", "environment")
    monkeypatch.setenv("CACHEFS_S3_PROFILE", "environment")
    found = load_config(path, parse_mount_options("s3_region=option")).s3
    assert (found.region, found.profile, found.endpoint) == ("option", "environment", "http://file")
    monkeypatch.setenv("CACHEFS_S3_CONNECTIONS", "7")
    assert configured_s3().connections == 7


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ENDPOINT", "s3.example.com"),
        ("ENDPOINT", "http://user:geheim@host"),
        ("REQUESTS_IN_FLIGHT", "0"),
        ("PART_BYTES", "1MiB"),
        ("SSE", "rot13"),
        ("SSE_KMS_KEY", "a"),
        ("BUCKET", "a"),
    ],
)
def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"CACHEFS_S3_{name}", value)
    with pytest.raises(ConfigError, match=name.lower()):
        load_config(None, {})


def test_a_store_is_made_once_and_opened_again(s3_url: str) -> None:
    made = create_store(s3_url)
    again = open_store(s3_url)
    assert (again.identity, again.url) == (made.identity, s3_url)
