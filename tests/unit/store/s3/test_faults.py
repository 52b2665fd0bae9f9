"""What S3Objects makes of an S3 server that fails, through a proxy before a real one."""

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator

import pytest

from cachefs.errors import (
    CachefsError,
    CorruptError,
    ObjectMissingError,
    StoreRefusedError,
    StoreUnavailableError,
)
from cachefs.store.s3.objects import S3Objects, open_s3
from tests.proxies.faults import Fault
from tests.proxies.http_proxy import HttpProxy
from tests.s3.servers import S3Server

DATA = bytes(range(256)) * 1280
"""A piece of what reads a body, and some: no more, since all passes a proxy in Python."""

HASTY = {"read_timeout_s": 1.5, "request_timeout_s": 2.0}
PATIENT = {"read_timeout_s": 10.0, "request_timeout_s": 30.0}
"""Where no timeout is wanted, on a machine that is busy."""

OUTAGES = {
    "503": Fault("status", status=503, code="SlowDown"),
    "500": Fault("status", status=500, code="InternalError"),
    "503 without a body that is known": Fault("status", status=503, code=""),
    "400 of a slow connection": Fault("status", status=400, code="RequestTimeout"),
    "reset before the answer": Fault("reset"),
    "reset in the head": Fault("reset", after=0.00001),
    "reset in the middle": Fault("reset", after=0.5),
    "reset before the last byte": Fault("reset", after=1.0),
    "closed before the answer": Fault("cut"),
    "closed in the middle": Fault("cut", after=0.5),
    "closed before the last byte": Fault("cut", after=1.0),
    "a hang before the answer": Fault("hang"),
    "a hang in the middle": Fault("hang", after=0.5),
    "an answer that drips": Fault(bytes_per_s=100_000),
    "200 with an error": Fault("error_body"),
}
WRONG_RANGES = {"a shorter answer": Fault("shorten"), "another range": Fault("other_range")}


@pytest.fixture
def open_objects(s3: S3Server, proxy: HttpProxy) -> Iterator[Callable[..., S3Objects]]:
    """Opens the same place through the proxy."""
    url = f"s3://{s3.bucket}/{uuid.uuid4().hex}"

    def open_it(**changes: object) -> S3Objects:
        settings = s3.settings(**{"endpoint": proxy.endpoint, **PATIENT, **changes})
        return open_s3(url, settings)

    yield open_it
    proxy.script.stop()


@pytest.fixture
def objects(open_objects: Callable[..., S3Objects]) -> S3Objects:
    made = open_objects()
    made.put_if("cachefs.json", b"{}", None)
    made.put("packs/a", DATA)
    return made


def timeouts_for(fault: Fault) -> dict[str, float]:
    """Short ones where they are what ends the fault."""
    return HASTY if fault.kind == "hang" or fault.bytes_per_s else PATIENT


def is_get(call: str) -> bool:
    return call.startswith("GET ")


def is_put(call: str) -> bool:
    return call.startswith("PUT ")


READS: dict[str, Callable[[S3Objects], object]] = {
    "get_range": lambda objects: objects.get_range("packs/a", 1000, len(DATA) - 2000),
    "get": lambda objects: objects.get("packs/a"),
    "get_tail": lambda objects: objects.get_tail("packs/a", len(DATA) - 10),
}


def read_at_last(read: Callable[[S3Objects], object], objects: S3Objects) -> object:
    """Read well, if need be a few times: a busy machine may be slower than a hasty client."""
    for _ in range(9):
        with contextlib.suppress(StoreUnavailableError):
            return read(objects)
    return read(objects)


@pytest.mark.parametrize("read", READS.values(), ids=READS)
@pytest.mark.parametrize("fault", OUTAGES.values(), ids=OUTAGES)
def test_a_read_that_fails_is_an_outage_and_the_next_succeeds(
    open_objects: Callable[..., S3Objects],
    objects: S3Objects,
    proxy: HttpProxy,
    fault: Fault,
    read: Callable[[S3Objects], object],
) -> None:
    timeouts = timeouts_for(fault)
    expected = read(objects)
    tried = open_objects(**timeouts)
    proxy.script.play(fault)
    begun_s = time.monotonic()
    with pytest.raises(StoreUnavailableError, match=r"s3://images/.*packs/a"):
        read(tried)
    longest_s = sum(HASTY.values()) + 0.5 if timeouts is HASTY else 2.1
    assert time.monotonic() - begun_s < longest_s
    assert proxy.script.matched == 1  # nothing below us asked again
    assert (read_at_last(read, tried) == expected) is True


@pytest.mark.parametrize("fault", WRONG_RANGES.values(), ids=WRONG_RANGES)
def test_an_answer_to_another_question_is_an_outage(
    objects: S3Objects, proxy: HttpProxy, fault: Fault
) -> None:
    for read in (READS["get_range"], READS["get_tail"]):
        if fault.kind == "other_range" and read is READS["get_tail"]:
            continue  # where a tail begins is not believed: its length and the whole's are
        proxy.script.play(fault)
        with pytest.raises(StoreUnavailableError, match="answered with another"):
            read(objects)


@pytest.mark.parametrize("fault", OUTAGES.values(), ids=OUTAGES)
def test_a_list_that_fails_is_an_outage_and_no_shorter_list(
    open_objects: Callable[..., S3Objects], objects: S3Objects, proxy: HttpProxy, fault: Fault
) -> None:
    if fault.bytes_per_s:
        return  # an answer of 500 bytes does not drip
    objects = open_objects(**timeouts_for(fault))
    proxy.script.play(fault)
    with pytest.raises(StoreUnavailableError, match="list"):
        list(objects.list("packs/"))
    assert [info.key for info in objects.list("packs/")] == ["packs/a"]


def test_a_store_that_is_gone_is_no_empty_list(objects: S3Objects, proxy: HttpProxy) -> None:
    objects.delete("packs/a")
    assert list(objects.list("packs/")) == []
    objects.delete("cachefs.json")
    with pytest.raises(StoreUnavailableError, match=r"there is no cachefs\.json"):
        list(objects.list("packs/"))


REFUSALS: dict[str, tuple[Fault, type[CachefsError], str]] = {
    "403": (
        Fault("status", status=403, code="AccessDenied"),
        StoreRefusedError,
        "403 AccessDenied",
    ),
    "401": (Fault("status", status=401, code=""), StoreRefusedError, "credentials"),
    "301": (Fault("status", status=301, code="PermanentRedirect"), StoreRefusedError, "region"),
    "400": (Fault("status", status=400, code="Malformed"), StoreRefusedError, "400 Malformed"),
    "404": (Fault("status", status=404, code="NoSuchKey"), ObjectMissingError, "no such object"),
    "no bucket": (Fault("status", status=404, code="NoSuchBucket"), StoreRefusedError, "make it"),
    "416": (Fault("status", status=416, code="InvalidRange"), CorruptError, "cut short"),
}


@pytest.mark.parametrize("case", REFUSALS.values(), ids=REFUSALS)
def test_an_answer_that_is_final_is_no_outage(
    open_objects: Callable[..., S3Objects],
    objects: S3Objects,
    proxy: HttpProxy,
    case: tuple[Fault, type[CachefsError], str],
) -> None:
    fault, expected, message = case
    patient = open_objects(retries=5)
    proxy.script.play_always(fault, is_get)
    for name in ("get_range", "get"):
        with pytest.raises(expected, match=message) as caught:
            READS[name](patient)
        assert not caught.value.transient
    assert proxy.script.matched == 2


def test_a_command_asks_again(
    open_objects: Callable[..., S3Objects], objects: S3Objects, proxy: HttpProxy
) -> None:
    patient = open_objects(retries=2)
    for read in READS.values():
        proxy.script.play(OUTAGES["503"], OUTAGES["reset in the middle"])
        read(patient)
        assert proxy.script.matched == 3
        proxy.script.play_always(OUTAGES["503"])
        with pytest.raises(StoreUnavailableError, match="503 SlowDown"):
            read(patient)
        assert proxy.script.matched == 3


@pytest.mark.parametrize("fault", OUTAGES.values(), ids=OUTAGES)
def test_a_write_whose_answer_is_lost_is_written_once(
    open_objects: Callable[..., S3Objects], objects: S3Objects, proxy: HttpProxy, fault: Fault
) -> None:
    """The server may have taken it: then the next try is refused, and that is no conflict."""
    patient = open_objects(retries=1, **timeouts_for(fault))
    first = patient.put_if("images/a", b"1", None)
    proxy.script.play(fault, matches=is_put)
    second = patient.put_if("images/a", b"2", first)
    assert patient.get("images/a") == (b"2", second)
    proxy.script.play(fault, matches=is_put)
    patient.put("packs/b", DATA)
    assert (patient.get("packs/b")[0] == DATA) is True


def parts_left(server: S3Server) -> list[object]:
    return list(server.client().list_multipart_uploads(Bucket=server.bucket).get("Uploads", []))


LARGE = bytes(11 * 1024 * 1024)


@pytest.mark.parametrize("at", ["uploads", "partNumber=2", "uploadId="])
def test_an_upload_in_parts_is_complete_or_given_up(
    s3: S3Server, open_objects: Callable[..., S3Objects], proxy: HttpProxy, at: str
) -> None:
    sizes = {"multipart_bytes": 5 << 20, "part_bytes": 5 << 20, "request_timeout_s": 30}
    hasty = open_objects(**sizes, read_timeout_s=20)
    before = len(parts_left(s3))

    def is_it(call: str) -> bool:
        kind = "PUT" if "partNumber" in at else "POST"
        return call.startswith(kind) and at in call

    for fault in (OUTAGES["503"], OUTAGES["200 with an error"]):
        proxy.script.play_always(fault, is_it)
        with pytest.raises(StoreUnavailableError, match="packs/large"):
            hasty.put("packs/large", LARGE)
        proxy.script.stop()
        with pytest.raises(ObjectMissingError):
            hasty.get("packs/large")
        assert len(parts_left(s3)) == before
    patient = open_objects(**sizes, read_timeout_s=20, retries=1)
    proxy.script.play(OUTAGES["503"], matches=is_it)
    patient.put("packs/large", LARGE)
    assert (patient.get("packs/large")[0] == LARGE) is True
    assert len(parts_left(s3)) == before


def test_a_server_that_is_gone_is_an_outage(objects: S3Objects, proxy: HttpProxy) -> None:
    proxy.go_down()
    for read in READS.values():
        with pytest.raises(StoreUnavailableError):
            read(objects)
    with pytest.raises(StoreUnavailableError):
        list(objects.list("packs/"))
    with pytest.raises(StoreUnavailableError):
        objects.put_if("images/b", b"1", None)
    proxy.go_up()
    assert objects.get_range("packs/a", 0, 10) == DATA[:10]


def test_wrong_credentials_are_a_refusal_that_shows_no_secret(
    open_objects: Callable[..., S3Objects], objects: S3Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-that-is-wrong")
    stranger = open_objects()
    for read in READS.values():
        with pytest.raises(StoreRefusedError, match="SignatureDoesNotMatch") as caught:
            read(stranger)
        assert "a-secret" not in str(caught.value)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    nobody = open_objects()
    for read in READS.values():
        with pytest.raises(StoreRefusedError, match="credentials"):
            read(nobody)
