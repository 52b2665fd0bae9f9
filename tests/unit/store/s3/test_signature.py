"""Our signature is botocore's: equal headers for any key, range, region, credentials and time."""

import datetime as dt
import json
import time
from pathlib import Path
from unittest import mock
from urllib.parse import quote

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials
from hypothesis import given
from hypothesis import strategies as st

from cachefs.config import S3Section
from cachefs.errors import StoreRefusedError, StoreUnavailableError
from cachefs.store.s3 import signature
from cachefs.store.s3.connection import Connection
from cachefs.store.s3.objects import open_s3
from cachefs.store.s3.signature import Signer
from cachefs.store.s3_settings import S3Settings
from tests.s3.servers import ACCESS_KEY, SECRET_KEY, S3Server

VISIBLE = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=60)
TIMES = st.integers(min_value=0, max_value=4_000_000_000)


def botocore_headers(
    credentials: ReadOnlyCredentials, region: str, url: str, byte_range: str, now_s: int
) -> dict[str, str]:
    request = AWSRequest(method="GET", url=url, headers={"Range": byte_range})
    now = dt.datetime.fromtimestamp(now_s, dt.UTC).replace(tzinfo=None)
    with mock.patch("botocore.auth.get_current_datetime", return_value=now):
        S3SigV4Auth(credentials, "s3", region).add_auth(request)
    return {name.lower(): value for name, value in request.headers.items()}


def ours(
    signer: Signer, credentials: ReadOnlyCredentials, path: str, byte_range: str, now_s: int
) -> dict[str, str]:
    headers = signer.headers(credentials, path, byte_range, now_s)
    return {name.lower(): value for name, value in headers.items()}


@given(
    key=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=80),
    offset=st.integers(0, 2**40),
    size_bytes=st.integers(1, 2**30),
    region=st.sampled_from(["us-east-1", "eu-central-1", "cn-north-1", "a-server"]),
    access_key=VISIBLE,
    secrets=st.lists(VISIBLE, min_size=1, max_size=3),
    token=st.none() | VISIBLE,
    times=st.lists(TIMES, min_size=1, max_size=3),
)
def test_it_is_botocores(
    key: str,
    offset: int,
    size_bytes: int,
    region: str,
    access_key: str,
    secrets: list[str],
    token: str | None,
    times: list[int],
) -> None:
    path, byte_range = (
        "/bucket/" + quote(key, safe="/-_.~"),
        f"bytes={offset}-{offset + size_bytes}",
    )
    signer = Signer("s3.example.com:9000", region)
    for secret in secrets:  # one signer: credentials that were renewed, days that went by
        credentials = ReadOnlyCredentials(access_key, secret, token)
        for now_s in times:
            url = f"http://s3.example.com:9000{path}"
            expected = botocore_headers(credentials, region, url, byte_range, now_s)
            assert ours(signer, credentials, path, byte_range, now_s) == expected


ENDPOINTS = {
    "Amazon's": {},
    "Amazon's, path": {"addressing": "path"},
    "another region": {"region": "eu-west-3"},
    "with a port": {"endpoint": "http://10.0.0.1:9000"},
    "the scheme's own port": {"endpoint": "https://s3.example.com:443"},
    "virtual host": {"endpoint": "https://s3.example.com", "addressing": "virtual"},
    "virtual host with a port": {"endpoint": "http://s3.test:8333", "addressing": "virtual"},
    "IPv6": {"endpoint": "http://[::1]:9000"},
    "capitals": {"endpoint": "http://S3.Example.com:9000"},
}


@pytest.mark.parametrize("options", ENDPOINTS.values(), ids=ENDPOINTS)
@pytest.mark.parametrize("bucket", ["bucket", "a.bucket"])
def test_it_is_botocores_for_every_kind_of_endpoint(
    options: dict[str, str], bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    connection = Connection(S3Settings(**S3Section.model_validate(options).model_dump()), bucket)
    credentials, region = connection.credentials(), connection.region
    key = "store/packs/%C3%A9%20+"
    expected = botocore_headers(
        credentials, region, connection.bucket_url + key, "bytes=0-9", 1_800_000_000
    )
    path = connection.bucket_path + key
    assert ours(connection.signer, credentials, path, "bytes=0-9", 1_800_000_000) == expected
    assert connection.bucket_url.endswith(connection.bucket_path)


def test_a_server_takes_it_for_keys_of_all_kinds(s3: S3Server) -> None:
    for key in ("packs/plain", "packs/a b+c", "packs/ü~(1)'!*", "packs/100%", "packs/a=b&c?d#e"):
        s3.client().put_object(Bucket=s3.bucket, Key=f"signed/{key}", Body=b"0123456789")
        assert open_s3("s3://images/signed", s3.settings()).get_range(key, 2, 3) == b"234"


@pytest.mark.parametrize("hours", [-3, 3])
def test_a_clock_that_is_wrong_costs_one_try(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    """Ours, or the server's: what it says of the time is signed from then on, until it is set."""
    s3.client().put_object(Bucket=s3.bucket, Key="signed/clock", Body=b"0123456789")
    objects = open_s3("s3://images/signed", s3.settings())
    assert objects.get_range("clock", 0, 2) == b"01"
    for ahead_s in (hours * 3600, 0):  # and then somebody sets it
        monkeypatch.setattr(signature, "time", _Clock(ahead_s))
        with pytest.raises(StoreUnavailableError, match="RequestTimeTooSkewed: set the clock"):
            objects.get_range("clock", 0, 2)
        assert objects.get_range("clock", 2, 3) == b"234"


class _Clock:
    """The module `time` with another time of day."""

    strftime, gmtime = staticmethod(time.strftime), staticmethod(time.gmtime)

    def __init__(self, ahead_s: float) -> None:
        self._ahead_s = ahead_s

    def time(self) -> float:
        return time.time() + self._ahead_s


@given(date=st.text(max_size=40))
def test_what_is_no_date_sets_no_clock(date: str) -> None:
    signer = Signer("s3.example.com", "us-east-1")
    signer.set_clock(date)
    credentials = ReadOnlyCredentials("a", "b", None)
    assert signer.headers(credentials, "/b/k", "bytes=0-9")["X-Amz-Date"].startswith("2")


def test_credentials_that_end_are_renewed(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By botocore, here from a program; with those of before nothing is signed any more."""
    s3.client().put_object(Bucket=s3.bucket, Key="signed/renewed", Body=b"0123456789")
    said = tmp_path / "said.json"
    (tmp_path / "config").write_text(f"[default]\ncredential_process = cat {said}\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))

    def say(secret: str) -> None:
        end = dt.datetime.now(dt.UTC) + dt.timedelta(minutes=1)
        values = {
            "Version": 1,
            "AccessKeyId": ACCESS_KEY,
            "SecretAccessKey": secret,
            "Expiration": end.isoformat(),  # so soon that each request asks for new ones
        }
        said.write_text(json.dumps(values))

    say(SECRET_KEY)
    objects = open_s3("s3://images/signed", s3.settings())
    assert objects.get_range("renewed", 0, 2) == b"01"
    say("another")
    with pytest.raises(StoreRefusedError, match="403 SignatureDoesNotMatch"):
        objects.get_range("renewed", 0, 2)
    say(SECRET_KEY)
    assert objects.get_range("renewed", 0, 2) == b"01"
