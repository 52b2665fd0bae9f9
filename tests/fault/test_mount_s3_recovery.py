"""Many readers and a server that fails: few requests while it does, and no herd when it is back."""

import time
from collections.abc import Iterator

import pytest

from cachefs.store.store import Store, create_store
from tests.mount.mounts import Mount, Mounts, read_direct, wait_for
from tests.mount.reading import Reading, digest_of
from tests.mount.samples import KIB, noise
from tests.proxies.faults import Fault
from tests.proxies.http_proxy import HttpProxy
from tests.stores import import_bytes

pytestmark = pytest.mark.mount

CHUNK_BYTES = 64 * KIB
CHUNKS = 24
READERS = 48
FETCHERS, REQUESTS = 2, 2
DATA = noise(CHUNKS * CHUNK_BYTES, 5)


@pytest.fixture
def store(s3_url: str) -> Store:
    store = create_store(s3_url)
    import_bytes(store, DATA, "image", CHUNK_BYTES)
    return store


@pytest.fixture
def mount(
    mounts: Mounts, store: Store, proxy: HttpProxy, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Mount]:
    # A connection is for what is ahead: so many requests are the most that a fetcher may have.
    monkeypatch.setenv("CACHEFS_S3_CONNECTIONS", str(REQUESTS + 1))
    # Fetching ahead has requests of its own, and is not what is counted here.
    options = f"noprefetch,s3_endpoint={proxy.endpoint},fetchers={FETCHERS},s3_requests={REQUESTS}"
    mount = mounts(store.url).start(f"{options},read_deadline=1.5,refresh=60,on_outage=hold")
    read_direct(mount / "image", 0, CHUNK_BYTES)
    yield mount
    proxy.script.stop()


@pytest.fixture
def readers(mount: Mount, proxy: HttpProxy) -> Iterator[list[Reading]]:
    """Two for each chunk; they end before the mount does."""
    made: list[Reading] = []
    yield made
    for reading in made:
        reading.end()


def is_pack(call: str) -> bool:
    return call.startswith("GET ") and "/packs/" in call


def begin(mount: Mount, made: list[Reading]) -> None:
    for number in range(READERS):
        at = (number % CHUNKS) * CHUNK_BYTES
        made.append(Reading(mount / "image", at, CHUNK_BYTES))


def check_all(readers: list[Reading]) -> None:
    for number, reading in enumerate(readers):
        at = (number % CHUNKS) * CHUNK_BYTES
        assert reading.digest() == digest_of(DATA[at : at + CHUNK_BYTES])


@pytest.mark.parametrize("kind", ["503", "reset", "gone"])
def test_a_server_that_is_back_is_not_overrun(
    mount: Mount, proxy: HttpProxy, readers: list[Reading], kind: str
) -> None:
    faults = {"503": Fault("status", status=503, code="SlowDown"), "reset": Fault("reset")}
    if kind in faults:
        proxy.script.play_always(faults[kind], is_pack)
    else:
        proxy.go_down()
    begin(mount, readers)
    wait_for(lambda: mount.supervised()["lane"]["held"] >= READERS - 2, "reads that are held")
    asked, since_s = proxy.script.matched, time.monotonic()
    time.sleep(4)
    # A probe a second of each fetcher, and no more; without a breaker 46 readers ask for 23 chunks.
    most = FETCHERS * 3 * (time.monotonic() - since_s)
    assert proxy.script.matched - asked <= most
    assert kind == "gone" or proxy.script.matched > asked
    assert mount.metrics()["l3_bypassed"] > 0

    healed_s = time.monotonic()
    proxy.most_at_once = 0
    if kind == "gone":
        proxy.go_up()
    proxy.script.play_always(Fault(delay_s=0.05), is_pack)
    check_all(readers)
    assert time.monotonic() - healed_s < 6
    # Each chunk once, and neighbours together; never more at once than there are requests.
    assert proxy.script.matched <= CHUNKS
    assert 1 <= proxy.most_at_once <= FETCHERS * REQUESTS + 1  # and the list of images
    metrics = mount.metrics()
    assert metrics["l3_chunks"] == CHUNKS
    assert metrics["read_errors"] == metrics["fetcher_deaths"] == 0


def test_many_cold_reads_are_no_more_requests_at_once_than_configured(
    mount: Mount, proxy: HttpProxy, readers: list[Reading]
) -> None:
    proxy.script.play_always(Fault(delay_s=0.1), is_pack)
    proxy.most_at_once = 0
    begin(mount, readers)
    check_all(readers)
    assert proxy.script.matched >= FETCHERS
    assert 2 <= proxy.most_at_once <= FETCHERS * REQUESTS
