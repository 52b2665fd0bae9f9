"""What goes wrong while chunks are fetched ahead is seen by nobody, and delays nobody."""

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from cachefs.store.store import Store, create_store
from tests.fault.test_mount_outage import seconds
from tests.mount.mounts import Mount, Mounts, read_direct
from tests.mount.samples import KIB, MIB, noise
from tests.proxies.faults import Fault
from tests.proxies.http_proxy import HttpProxy
from tests.stores import import_bytes

pytestmark = pytest.mark.mount

CHUNK_BYTES = 64 * KIB
DATA = noise(32 * MIB, 4)
DEADLINE_S = 4
SLOW = Fault(bytes_per_s=4e6)


@pytest.fixture
def store(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("CACHEFS_S3_READ_TIMEOUT_S", "0.5")
    store = create_store(s3_url)
    import_bytes(store, DATA, "image", CHUNK_BYTES)
    return store


@pytest.fixture
def mount(mounts: Mounts, store: Store, proxy: HttpProxy) -> Iterator[Mount]:
    options = f"s3_endpoint={proxy.endpoint},read_deadline={DEADLINE_S},refresh=0.3"
    yield mounts(store.url).start(options)
    proxy.script.stop()


def is_pack(call: str) -> bool:
    return call.startswith("GET ") and "/packs/" in call


def read_until_ahead(mount: Mount) -> int:
    """Read on until something is fetched ahead; returns how far."""
    at = 0
    while not mount.metrics()["ahead_jobs"]:
        assert at < len(DATA), "nothing was ever fetched ahead"
        assert read_direct(mount / "image", at, 256 * KIB) == DATA[at : at + 256 * KIB]
        at += 256 * KIB
    return at


def test_a_store_that_hangs_while_prefetching_fails_reads_at_their_deadline_as_ever(
    mount: Mount, proxy: HttpProxy
) -> None:
    with (mount / "image").open("rb"):
        proxy.script.play_always(SLOW, is_pack)
        at = read_until_ahead(mount)
        proxy.script.play_always(Fault("hang"), is_pack)
        far = len(DATA) - CHUNK_BYTES

        def fail(offset: int) -> None:
            with pytest.raises(OSError, match=r"\[Errno 5\]"):
                read_direct(mount / "image", offset, CHUNK_BYTES)

        # One that joins what is fetched ahead or comes after it, and one that wants another chunk.
        assert DEADLINE_S - 0.5 < seconds(lambda: fail(far)) < DEADLINE_S + 2
        mount.check_idle()
        proxy.script.stop()
        assert seconds(lambda: read_direct(mount / "image", far, CHUNK_BYTES)) < 3
        assert (read_direct(mount / "image", at) == DATA[at:]) is True
    assert mount.metrics()["fetcher_deaths"] == 0


def test_demand_overtakes_slow_requests_ahead(mount: Mount, proxy: HttpProxy) -> None:
    with (mount / "image").open("rb"):
        proxy.script.play_always(SLOW, is_pack)
        read_until_ahead(mount)
        far = len(DATA) - CHUNK_BYTES
        took_s = seconds(lambda: read_direct(mount / "image", far, CHUNK_BYTES))
        assert took_s < 1.0  # 64 KiB at that rate: 16 ms


@pytest.mark.parametrize("victim", ["daemon", "fetcher"])
def test_killed_while_prefetching(mount: Mount, proxy: HttpProxy, victim: str) -> None:
    with (mount / "image").open("rb"):
        proxy.script.play_always(SLOW, is_pack)
        at = read_until_ahead(mount)
        got: list[bytes] = []
        reader = threading.Thread(
            target=lambda: got.append(read_direct(mount / "image", at, 2 * MIB))
        )
        reader.start()
        time.sleep(0.1)
        if victim == "daemon":
            mount.kill_daemon_and_wait()
        else:
            for pid in mount.daemon()["fetchers"]["pids"]:
                os.kill(pid, signal.SIGKILL)
        proxy.script.stop()
        reader.join(60)
        assert (got == [DATA[at : at + 2 * MIB]]) is True
        assert (read_direct(mount / "image") == DATA) is True
        mount.check_idle()
        mount.check_slots()


def test_unmounted_while_prefetching(mount: Mount, proxy: HttpProxy) -> None:
    with (mount / "image").open("rb"):
        proxy.script.play_always(SLOW, is_pack)
        read_until_ahead(mount)
    assert seconds(mount.umount) < 8
    proxy.script.stop()
    mount.start(f"s3_endpoint={proxy.endpoint}")
    assert (read_direct(mount / "image") == DATA) is True


def test_wrong_bytes_ahead_are_kept_by_nobody(mount: Mount, proxy: HttpProxy) -> None:
    with (mount / "image").open("rb"):
        proxy.script.play(*[Fault("flip"), *[Fault()] * 9] * 2, matches=is_pack)
        assert (read_direct(mount / "image") == DATA) is True
    metrics = mount.metrics()
    assert 1 <= metrics["l3_corrupt"] <= 2  # the second only if so many requests are made
    assert metrics["read_errors"] == 0
