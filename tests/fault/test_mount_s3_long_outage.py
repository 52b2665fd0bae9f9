"""S3 is gone for long, under load: hits as ever, misses at their deadline, and then all is well.

Some seconds in the test suite; `make stress` makes it ten minutes (CACHEFS_OUTAGE_S).
"""

import errno
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import pytest

from cachefs.store.store import Store, create_store
from tests.mount.mounts import Mount, Mounts, read_direct, wait_for
from tests.mount.samples import KIB, MIB, mixture, noise
from tests.proxies.faults import Fault
from tests.proxies.http_proxy import HttpProxy
from tests.stores import import_bytes

pytestmark = pytest.mark.mount

CALM_S = 2.0
OUTAGE_S = float(os.environ.get("CACHEFS_OUTAGE_S", "8"))
DEADLINE_S = 1.5
CHUNK_BYTES = 64 * KIB
CHUNKS = 64
WARM, COLD = mixture(MIB, 1), noise(CHUNKS * CHUNK_BYTES, 2)
READERS = 16
"""Of what is not in L1: more than there are requests."""

FETCHERS, REQUESTS = 2, 2
PAUSE_S = 0.005


@pytest.fixture
def store(s3_url: str) -> Store:
    store = create_store(s3_url)
    import_bytes(store, WARM, "warm", CHUNK_BYTES)
    import_bytes(store, COLD, "cold", CHUNK_BYTES)
    return store


@pytest.fixture
def mount(
    mounts: Mounts, store: Store, proxy: HttpProxy, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Mount]:
    """One image in L1, of another only its table."""
    # A connection is for what is ahead: so many requests are the most that a fetcher may have.
    monkeypatch.setenv("CACHEFS_S3_CONNECTIONS", str(REQUESTS + 1))
    monkeypatch.setenv("CACHEFS_S3_READ_TIMEOUT_S", "0.5")
    options = f"noprefetch,s3_endpoint={proxy.endpoint},fetchers={FETCHERS},s3_requests={REQUESTS}"
    mount = mounts(store.url).start(f"{options},read_deadline={DEADLINE_S},refresh=1")
    assert read_direct(mount / "warm") == WARM
    assert read_direct(mount / "cold", 0, CHUNK_BYTES) == COLD[:CHUNK_BYTES]
    yield mount
    proxy.script.stop()


@dataclass
class Load:
    """Readers of two images, until it is told to end; what they saw, by when they began."""

    mount: Mount
    hits_s: list[tuple[float, float]] = field(default_factory=list)
    failed_s: list[tuple[float, float]] = field(default_factory=list)
    fetched_s: list[tuple[float, float]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    is_over: threading.Event = field(default_factory=threading.Event)

    def read_hits(self) -> None:
        """Read what is in L1, a chunk each time."""
        number = 0
        while not self.is_over.wait(PAUSE_S):
            number = (number + 7) % (len(WARM) // CHUNK_BYTES)
            self._read("warm", WARM, number, self.hits_s)

    def read_misses(self, first: int) -> None:
        """Read chunks that are not in L1, each until it has come."""
        for number in range(first, CHUNKS, READERS):
            while not self._read("cold", COLD, number, self.fetched_s):
                if self.is_over.is_set():
                    return

    def _read(self, name: str, data: bytes, number: int, times: list[tuple[float, float]]) -> bool:
        at, begun_s = number * CHUNK_BYTES, time.monotonic()
        try:
            found = read_direct(self.mount / name, at, CHUNK_BYTES)
        except OSError as error:
            if error.errno != errno.EIO or name == "warm":
                self.wrong.append(f"{name} {number}: {error}")
            self.failed_s.append((begun_s, time.monotonic() - begun_s))
            return False
        if found != data[at : at + CHUNK_BYTES]:
            self.wrong.append(f"{name} {number}: other bytes")
        times.append((begun_s, time.monotonic() - begun_s))
        return True


def resident_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    [line] = [line for line in status.splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) * KIB


def check_hits(load: Load, gone_s: float, back_s: float) -> None:
    """At full speed: the middle one is as it was, and they don't wait for the store."""
    calm = [took_s for at_s, took_s in load.hits_s if at_s < gone_s]
    meanwhile = [took_s for at_s, took_s in load.hits_s if gone_s <= at_s < back_s]
    assert median(meanwhile) < 2 * median(calm) + 0.001
    assert len(meanwhile) > 0.3 * (back_s - gone_s) * len(calm) / CALM_S
    assert sorted(meanwhile)[len(meanwhile) * 99 // 100] < 0.25  # not all: processors are shared


def check_failures(load: Load, back_s: float) -> None:
    """Misses wait to their deadline, and no longer."""
    waited = [took_s for at_s, took_s in load.failed_s if at_s + DEADLINE_S < back_s]
    assert len(waited) >= READERS
    assert min(waited) >= DEADLINE_S - 0.2
    assert max(waited) < DEADLINE_S + 1.5


@pytest.mark.timeout(OUTAGE_S + 300)
@pytest.mark.parametrize("kind", ["gone", "hung"])
def test_a_long_outage_under_load(mount: Mount, proxy: HttpProxy, kind: str) -> None:
    load, fetched_before = Load(mount), mount.metrics()["l3_chunks"]
    hitting = threading.Thread(target=load.read_hits)
    hitting.start()
    missing = [threading.Thread(target=load.read_misses, args=(1 + n,)) for n in range(READERS)]
    time.sleep(CALM_S)
    gone_s = time.monotonic()
    if kind == "gone":
        proxy.go_down()
    else:
        proxy.script.play_always(Fault("hang"))
    for thread in missing:
        thread.start()
    try:
        wait_for(lambda: load.failed_s, "a read that fails")
        memory_bytes = resident_bytes(mount.daemon()["pid"])
        time.sleep(max(0.0, gone_s + OUTAGE_S - time.monotonic()))
        grown_bytes = resident_bytes(mount.daemon()["pid"]) - memory_bytes
        assert mount.daemon()["store"]["error"]
        log_lines = mount.log().count("\n")

        back_s = time.monotonic()
        proxy.most_at_once = 0
        if kind == "gone":
            proxy.go_up()
        proxy.script.play_always(Fault(delay_s=0.02), lambda call: "/packs/" in call)
        for thread in missing:
            thread.join(60)
        asked = proxy.script.matched
    finally:
        load.is_over.set()
        hitting.join(60)
    assert load.wrong == []
    assert len(load.fetched_s) == CHUNKS - 1

    check_hits(load, gone_s, back_s)
    check_failures(load, back_s)
    # All of them are there within seconds of its end, each asked for once, by few requests.
    assert max(at_s + took_s for at_s, took_s in load.fetched_s) - back_s < 10
    assert min(at_s + took_s for at_s, took_s in load.fetched_s) - back_s < 5
    assert asked <= CHUNKS
    if kind == "gone":  # else the proxy counts those that hang for ever
        assert 1 <= proxy.most_at_once <= FETCHERS * REQUESTS + 1  # and the list of images

    metrics = mount.metrics()
    assert metrics["l3_chunks"] - fetched_before == CHUNKS - 1
    assert metrics["fetcher_deaths"] == 0
    assert grown_bytes < 16 * MIB
    assert log_lines < 100 + 4 * OUTAGE_S
    mount.check_idle()
    mount.check_slots()
