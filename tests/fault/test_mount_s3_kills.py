"""Fetchers of a store on S3 are killed while jobs lie in all of their threads, at any moment."""

import os
import random
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from cachefs.store.store import Store, create_store
from tests.mount.mounts import Mount, Mounts, read_direct, wait_for
from tests.mount.samples import KIB, noise
from tests.proxies.faults import Fault
from tests.proxies.http_proxy import HttpProxy
from tests.stores import import_bytes

pytestmark = pytest.mark.mount

CHUNK_BYTES = 64 * KIB
CHUNKS = 96
DATA = noise(CHUNKS * CHUNK_BYTES, 8)
READERS, KILLS = 12, 8


@pytest.fixture
def store(s3_url: str) -> Store:
    store = create_store(s3_url)
    import_bytes(store, DATA, "image", CHUNK_BYTES)
    return store


@pytest.fixture(params=["demand", "ahead as well"])
def mount(
    mounts: Mounts, store: Store, proxy: HttpProxy, request: pytest.FixtureRequest
) -> Iterator[Mount]:
    prefetch = "noprefetch" if request.param == "demand" else "prefetch"
    # So small an L1 that slots are evicted and filled again meanwhile.
    options = f"{prefetch},s3_endpoint={proxy.endpoint},fetchers=2,quota=2MiB,refresh=60"
    mount = mounts(store.url).start(options)
    read_direct(mount / "image", 0, CHUNK_BYTES)
    yield mount
    proxy.script.stop()


def test_fetchers_are_killed_in_the_middle_of_many_jobs(mount: Mount, proxy: HttpProxy) -> None:
    chance = random.Random(5)
    delay = Fault(delay_s=0.03)
    proxy.script.play_always(delay, lambda call: "/packs/" in call)
    numbers = [chance.randrange(CHUNKS) for _ in range(400)] + list(range(CHUNKS))

    def is_right(number: int) -> bool:
        at = number * CHUNK_BYTES
        return read_direct(mount / "image", at, CHUNK_BYTES) == DATA[at : at + CHUNK_BYTES]

    with ThreadPoolExecutor(READERS) as readers:
        found = [readers.submit(is_right, number) for number in numbers]
        for _ in range(KILLS):
            wait_for(lambda: mount.metrics()["waiting_reads"], "reads that wait")
            victims = mount.daemon()["fetchers"]["pids"]
            for pid in victims[: chance.randint(1, 2)]:
                with suppress(ProcessLookupError):  # it is told of until its end is seen
                    os.kill(pid, signal.SIGKILL)
            time.sleep(chance.uniform(0, 0.4))
        assert all(one.result() for one in found)
    metrics = mount.metrics()
    assert metrics["fetcher_deaths"] >= KILLS // 2
    assert metrics["read_errors"] == 0
    assert metrics["l3_corrupt"] == 0
    mount.check_idle()
    mount.check_slots()
