"""A store on S3 behind an L2: jobs run beside each other in one fetcher and share its L2."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cachefs.store.store import Store, create_store
from tests.l2_proxy import Faults, Proxy, proxied
from tests.l2_servers import Redis, redis_server
from tests.mount.mounts import Mount, Mounts, read_direct, wait_for
from tests.mount.samples import KIB, noise
from tests.proxies.faults import Fault
from tests.proxies.http_proxy import HttpProxy
from tests.proxies.proxy import closing
from tests.s3.servers import S3Server
from tests.stores import import_bytes

pytestmark = pytest.mark.mount

CHUNK_BYTES = 64 * KIB
CHUNKS = 48
DATA = noise(CHUNKS * CHUNK_BYTES, 21)
READERS = 6


@pytest.fixture(scope="module")
def s3_proxy(s3_server: S3Server) -> Iterator[HttpProxy]:
    with closing(HttpProxy(s3_server.address)) as made:
        yield made


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    with redis_server(tmp_path / "redis") as running:
        yield running


@pytest.fixture
def redis_proxy(redis: Redis) -> Iterator[Proxy]:
    with proxied(redis.port) as proxy:
        yield proxy
        proxy.heal()


@pytest.fixture
def store(s3_url: str) -> Store:
    store = create_store(s3_url)
    import_bytes(store, DATA, "image", CHUNK_BYTES)
    return store


def start(
    mounts: Mounts,
    store: Store,
    folder: Path,
    l2_port: int,
    s3_endpoint: str,
    name: str,
    more: str = "prefetch",
    timeout_s: float = 5,
) -> Mount:
    """Mount with one fetcher and an empty L1. L2 has time to answer, unless it is to fail."""
    mount = mounts(store.url)
    config = folder / f"{name}.toml"
    url = f"redis://127.0.0.1:{l2_port}"
    pauses = "breaker_pause_s = 0.05\nbreaker_longest_pause_s = 0.2"
    config.write_text(f"[l2]\nurl = {json.dumps(url)}\ntimeout_s = {timeout_s}\n{pauses}\n")
    options = f"fetchers=1,s3_requests=4,s3_endpoint={s3_endpoint},read_deadline=10,refresh=60"
    options += f",{more}"
    verb, *rest = mount.arguments(options)
    done = mount.command(verb, "--config", config, *rest)
    assert done.returncode == 0, (done.stderr, mount.log())
    return mount


def read_side_by_side(mount: Mount, first: int, last: int) -> None:
    """Read chunks, several at a time, and compare."""

    def is_right(number: int) -> bool:
        at = number * CHUNK_BYTES
        return read_direct(mount / "image", at, CHUNK_BYTES) == DATA[at : at + CHUNK_BYTES]

    with ThreadPoolExecutor(READERS) as readers:
        assert all(readers.map(is_right, range(first, last)))


def test_jobs_beside_each_other_fill_l2_and_read_from_it(
    mounts: Mounts,
    store: Store,
    tmp_path: Path,
    redis: Redis,
    s3_server: S3Server,
    s3_proxy: HttpProxy,
) -> None:
    one = start(mounts, store, tmp_path, redis.port, s3_server.endpoint, "one")
    read_side_by_side(one, 0, CHUNKS)
    wait_for(lambda: one.metrics()["l2_backfilled"] == CHUNKS, "the back-fill")
    one.check_idle()
    metrics = one.metrics()
    assert (metrics["l2_errors"], metrics["l2_corrupt"]) == (0, 0)
    assert (metrics["l3_chunks"], metrics["l2_backfilled"]) == (CHUNKS, CHUNKS)
    assert len(redis.frames()) == CHUNKS

    other = start(mounts, store, tmp_path, redis.port, s3_proxy.endpoint, "other")
    read_side_by_side(other, 0, 1)  # the manifest is here now
    s3_proxy.script.play_always(Fault("status", status=503, code="SlowDown"))
    try:
        read_side_by_side(other, 1, CHUNKS)
    finally:
        s3_proxy.script.stop()
    metrics = other.metrics()
    assert (metrics["l2_chunks"], metrics["l3_chunks"], metrics["l2_misses"]) == (CHUNKS, 0, 0)
    assert (metrics["l2_errors"], metrics["read_errors"]) == (0, 0)


@pytest.mark.parametrize("kind", ["hung", "refused"])
def test_an_l2_that_fails_costs_latency_and_is_used_again(
    mounts: Mounts,
    store: Store,
    tmp_path: Path,
    redis_proxy: Proxy,
    s3_server: S3Server,
    kind: str,
) -> None:
    places = (redis_proxy.port, s3_server.endpoint, "mount")
    # It counts what reads do.
    mount = start(mounts, store, tmp_path, *places, "noprefetch", timeout_s=0.5)
    read_side_by_side(mount, 0, 8)
    redis_proxy.faults = {"hung": Faults(hang=True), "refused": Faults(refuse=True)}[kind]
    read_side_by_side(mount, 8, 32)
    wait_for(lambda: mount.metrics()["l2_open_breakers"] == 1, "an open breaker")
    redis_proxy.heal()
    wait_for(lambda: mount.metrics()["l2_open_breakers"] == 0, "the probe")
    read_side_by_side(mount, 32, CHUNKS)
    mount.check_idle()
    metrics = mount.metrics()
    assert metrics["read_errors"] == 0
    assert metrics["l3_chunks"] == CHUNKS
    assert metrics["l2_bypassed"] > 0
    # A fetcher tells of them a little after its answers.
    wait_for(lambda: mount.metrics()["l2_misses"] >= 8 + CHUNKS - 32, "misses")
