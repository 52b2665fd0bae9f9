"""A fetcher of a store on S3 that hangs, is slow, or refuses."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cachefs.store.store import Store, create_store
from cachefs.tiers.fetcher import Fetcher
from cachefs.tiers.jobs import ChunkJob, ChunksDone, Outcome, Wanted
from tests.caches import table_of
from tests.proxies.faults import Fault
from tests.proxies.http_proxy import HttpProxy
from tests.proxies.proxy import closing
from tests.s3.servers import S3Server
from tests.stores import CHUNK, import_bytes

SILENCE_S = 1.2
IMAGES = 5


@pytest.fixture
def proxy(s3: S3Server) -> Iterator[HttpProxy]:
    with closing(HttpProxy(s3.address)) as made:
        yield made


@pytest.fixture
def store(s3_url: str) -> Store:
    return create_store(s3_url)


@pytest.fixture
def wanted(store: Store, tmp_path: Path) -> tuple[Wanted, ...]:
    """Chunks that lie in packs of their own: a request each."""
    found = []
    for number in range(IMAGES):
        import_bytes(store, bytes([number + 1]) * CHUNK, f"image-{number}")
        ref = table_of(store, tmp_path, f"image-{number}").chunk(0)
        found.append(Wanted(ref.id, ref.plain_bytes, ref.pack, ref.offset, ref.frame_bytes, "", 0))
    return tuple(found)


@pytest.fixture
def fetcher(s3: S3Server, store: Store, proxy: HttpProxy) -> Fetcher:
    settings = s3.settings(endpoint=proxy.endpoint, read_timeout_s=SILENCE_S)
    return Fetcher(store.url, store.identity, settings)


def fetch(fetcher: Fetcher, wanted: tuple[Wanted, ...]) -> ChunksDone:
    answer = fetcher.answer(ChunkJob(1, wanted))
    assert isinstance(answer, ChunksDone)
    return answer


def is_pack(call: str) -> bool:
    return "/packs/" in call


def test_a_server_that_hangs_costs_a_job_one_timeout(
    fetcher: Fetcher, proxy: HttpProxy, wanted: tuple[Wanted, ...]
) -> None:
    assert {one.outcome for one in fetch(fetcher, wanted).fetched} == {Outcome.UNKEPT}
    proxy.script.play_always(Fault("hang"), is_pack)
    begun_s = time.monotonic()
    fetched = fetch(fetcher, wanted).fetched
    assert time.monotonic() - begun_s < 2 * SILENCE_S
    assert {one.outcome for one in fetched} == {Outcome.UNAVAILABLE}
    assert all("Read timeout" in one.message for one in fetched)
    assert proxy.script.matched == 1


def test_one_failed_request_does_not_fail_its_job(
    fetcher: Fetcher, proxy: HttpProxy, wanted: tuple[Wanted, ...]
) -> None:
    proxy.script.play(Fault("status", status=503), matches=is_pack)
    found = sorted(one.outcome.value for one in fetch(fetcher, wanted).fetched)
    assert found == ["unavailable"] + ["unkept"] * (IMAGES - 1)


def test_a_refusal_is_told_from_an_outage(
    fetcher: Fetcher, proxy: HttpProxy, wanted: tuple[Wanted, ...]
) -> None:
    for status, code, expected in (
        (403, "AccessDenied", Outcome.REFUSED),
        (404, "NoSuchKey", Outcome.MISSING),
        (416, "InvalidRange", Outcome.CORRUPT),
        (500, "InternalError", Outcome.UNAVAILABLE),
    ):
        fault = Fault("status", status=status, code=code)
        proxy.script.play_always(fault, is_pack)
        assert {one.outcome for one in fetch(fetcher, wanted).fetched} == {expected}


def test_a_store_that_fails_is_left_alone_and_probed(
    fetcher: Fetcher, proxy: HttpProxy, wanted: tuple[Wanted, ...]
) -> None:
    fetch(fetcher, wanted)
    proxy.script.play_always(Fault("status", status=503), is_pack)
    done = fetch(fetcher, wanted)
    assert (proxy.script.matched, done.requests, done.bypassed) == (3, 3, IMAGES - 3)
    # What was not asked for says why it is not here, as if it had been asked for.
    assert all("503" in one.message for one in done.fetched)
    begun_s, asked = time.monotonic(), proxy.script.matched
    jobs = 0
    while time.monotonic() < begun_s + 2:
        jobs += 1
        assert {one.outcome for one in fetch(fetcher, wanted).fetched} == {Outcome.UNAVAILABLE}
    assert 3 <= proxy.script.matched - asked <= 12 < jobs

    proxy.script.stop()
    healed_s = time.monotonic()
    while {one.outcome for one in fetch(fetcher, wanted).fetched} != {Outcome.UNKEPT}:
        assert time.monotonic() < healed_s + 2


def test_a_store_that_lacks_an_object_is_not_left_alone(
    fetcher: Fetcher, proxy: HttpProxy, wanted: tuple[Wanted, ...]
) -> None:
    """It answers: what else it has is asked for."""
    proxy.script.play_always(Fault("status", status=404, code="NoSuchKey"), is_pack)
    for _ in range(2):
        assert fetch(fetcher, wanted).bypassed == 0
    proxy.script.stop()
    assert {one.outcome for one in fetch(fetcher, wanted).fetched} == {Outcome.UNKEPT}
