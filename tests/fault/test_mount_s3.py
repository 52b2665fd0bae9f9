"""A mount of a store on S3 whose server fails: latency, or EIO with a cause; never a wrong byte."""

import os
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from cachefs.store.store import Store, create_store
from tests.fault.test_mount_outage import fail_to_read, seconds
from tests.mount.mounts import Mount, Mounts, read_direct, wait_for
from tests.mount.reading import Reading, digest_of
from tests.mount.samples import KIB, mixture, noise
from tests.proxies.faults import Fault
from tests.proxies.http_proxy import HttpProxy
from tests.s3.servers import SECRET_KEY, S3Server
from tests.stores import import_bytes

pytestmark = pytest.mark.mount

DEADLINE_S = 3.0
CHUNK_BYTES = 64 * KIB
COLD = noise(2048 * KIB, 2)
WARM = mixture(512 * KIB, 1)
SILENCE_S = 1.5

RETRIED = {
    "503": Fault("status", status=503, code="SlowDown"),
    "500": Fault("status", status=500, code="InternalError"),
    "another clock": Fault("status", status=403, code="RequestTimeTooSkewed"),
    "a hang": Fault("hang"),
    "a hang in the middle": Fault("hang", after=0.5),
    "reset in the middle": Fault("reset", after=0.5),
    "short body": Fault("cut", after=0.5),
    "wrong range": Fault("other_range"),
    "200 with an error": Fault("error_body"),
    "wrong bytes": Fault("flip"),
    "slow by a second": Fault(delay_s=0.4),
}
"""Once, or twice where it says nothing about what is stored, a read hardly notices."""

LASTING = {
    "503": (Fault("status", status=503, code="SlowDown"), "503 SlowDown"),
    "500": (Fault("status", status=500, code="InternalError"), "500 InternalError"),
    "another clock": (
        Fault("status", status=403, code="RequestTimeTooSkewed"),
        "403 RequestTimeTooSkewed: set the clock of this host",
    ),
    "a hang": (Fault("hang"), "Read timeout"),
    "reset in the middle": (Fault("reset", after=0.5), "Connection"),
    "short body": (Fault("cut", after=0.5), "ended after"),
    "200 with an error": (Fault("error_body"), "200 SlowDown"),
    "wrong bytes": (Fault("flip"), "is corrupt"),
    "wrong range": (Fault("other_range"), "another range"),
}
FINAL = {
    "403": (Fault("status", status=403, code="AccessDenied"), "403 AccessDenied"),
    "404": (Fault("status", status=404, code="NoSuchKey"), "no such object"),
}


@pytest.fixture
def store(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("CACHEFS_S3_READ_TIMEOUT_S", str(SILENCE_S))
    store = create_store(s3_url)
    import_bytes(store, WARM, "warm", CHUNK_BYTES)
    import_bytes(store, COLD, "cold", CHUNK_BYTES)
    return store


@pytest.fixture
def mount(mounts: Mounts, store: Store, proxy: HttpProxy) -> Iterator[Mount]:
    """One image in L1, of another only its table; S3 is reached through the proxy."""
    options = f"s3_endpoint={proxy.endpoint},read_deadline={DEADLINE_S},refresh=0.3"
    mount = mounts(store.url).start(options)
    assert read_direct(mount / "warm") == WARM
    assert read_direct(mount / "cold", 0, CHUNK_BYTES) == COLD[:CHUNK_BYTES]
    yield mount
    proxy.script.stop()


def is_pack(call: str) -> bool:
    return call.startswith("GET ") and "/packs/" in call


def piece(number: int) -> bytes:
    return COLD[number * CHUNK_BYTES : (number + 1) * CHUNK_BYTES]


def read_piece(mount: Mount, number: int) -> bytes:
    return read_direct(mount / "cold", number * CHUNK_BYTES, CHUNK_BYTES)


def test_a_fault_that_passes_costs_a_read_nothing_but_time(
    mounts: Mounts, store: Store, proxy: HttpProxy
) -> None:
    options = f"s3_endpoint={proxy.endpoint},read_deadline=30,refresh=0.3"
    mount = mounts(store.url).start(options)
    read_piece(mount, 0)
    for number, (name, fault) in enumerate(RETRIED.items(), 1):
        again = [] if fault.kind == "flip" else [fault]
        proxy.script.play(fault, *again, matches=is_pack)
        assert (read_piece(mount, number) == piece(number)) is True, name
        asked = proxy.script.matched
        assert asked == (1 if fault.delay_s else 2 + len(again)), name
        assert read_piece(mount, number) == piece(number)
        assert proxy.script.matched == asked  # it is in L1
    proxy.script.stop()
    metrics = mount.metrics()
    assert metrics["read_errors"] == 0
    assert metrics["l3_corrupt"] == 1
    assert metrics["fetcher_deaths"] == 0


@pytest.mark.parametrize("name", LASTING)
def test_a_fault_that_lasts_is_eio_with_its_cause_and_over_when_it_is_over(
    mount: Mount, proxy: HttpProxy, name: str
) -> None:
    fault, cause = LASTING[name]
    proxy.script.play_always(fault, is_pack)
    waited_s = seconds(lambda: fail_to_read(mount, "cold", CHUNK_BYTES))
    if fault.kind != "flip":
        assert DEADLINE_S - 0.2 <= waited_s < DEADLINE_S + 2
    assert seconds(lambda: read_direct(mount / "warm")) < 1
    wait_for(lambda: cause in mount.log(), cause, 5)
    # One line names image, chunk, place and cause.
    found = [line for line in mount.log().splitlines() if cause in line and "image 'cold'" in line]
    assert found, mount.log()
    assert "chunk" in found[0]
    assert "s3://images/" in found[0] or fault.kind == "hang"
    proxy.script.stop()
    assert seconds(lambda: read_direct(mount / "cold", 0, 8 * CHUNK_BYTES)) < 4
    assert (read_direct(mount / "cold") == COLD) is True
    assert mount.metrics()["fetcher_deaths"] == 0


@pytest.mark.parametrize("name", FINAL)
def test_a_refusal_is_no_outage_and_nobody_waits_for_its_end(
    mount: Mount, proxy: HttpProxy, name: str
) -> None:
    fault, cause = FINAL[name]
    proxy.script.play_always(fault, is_pack)
    assert seconds(lambda: fail_to_read(mount, "cold", CHUNK_BYTES)) < 1
    wait_for(lambda: cause in mount.log(), cause)
    proxy.script.stop()
    assert (read_direct(mount / "cold") == COLD) is True


def test_a_refusal_is_eio_also_where_an_outage_is_waited_out(
    mounts: Mounts, store: Store, proxy: HttpProxy
) -> None:
    options = f"s3_endpoint={proxy.endpoint},read_deadline=1,refresh=0.3,on_outage=hold"
    mount = mounts(store.url).start(options)
    read_piece(mount, 0)
    for fault, _ in FINAL.values():
        proxy.script.play_always(fault, is_pack)
        assert seconds(lambda: fail_to_read(mount, "cold", CHUNK_BYTES)) < 1
    proxy.script.play_always(Fault("status", status=503, code="SlowDown"), is_pack)
    reader = Reading(mount / "cold", CHUNK_BYTES, CHUNK_BYTES)
    try:
        wait_for(lambda: mount.supervised()["lane"]["held"], "a read that is held")
        proxy.script.stop()
        assert reader.digest(5) == digest_of(piece(1))
    finally:
        reader.end()


def test_the_server_is_gone_for_a_while(
    mounts: Mounts, store: Store, mount: Mount, proxy: HttpProxy
) -> None:
    patient = mounts(store.url).start(f"s3_endpoint={proxy.endpoint},read_deadline=20")
    assert read_piece(patient, 0) == piece(0)
    proxy.go_down()
    wait_for(lambda: mount.daemon()["store"]["error"], "an outage that is told")
    assert seconds(lambda: read_direct(mount / "warm")) < 1
    assert sorted(os.listdir(mount.mountpoint)) == ["cold", "warm"]
    fail_to_read(mount, "cold", CHUNK_BYTES)
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(read_direct(patient / "cold")))
    reader.start()
    wait_for(lambda: patient.metrics()["waiting_reads"] >= 1, "a reader that waits")
    time.sleep(1)
    proxy.go_up()
    reader.join(60)
    assert found == [COLD]
    wait_for(lambda: mount.daemon()["store"]["error"] is None, "the end of the outage", 6)
    assert read_direct(mount / "cold") == COLD
    assert mount.metrics()["fetcher_deaths"] == patient.metrics()["fetcher_deaths"] == 0


def test_credentials_are_in_no_argument_and_no_log(mount: Mount, proxy: HttpProxy) -> None:
    proxy.script.play_always(Fault("status", status=403, code="AccessDenied"), is_pack)
    fail_to_read(mount, "cold", CHUNK_BYTES)
    shown = " ".join(Path(f"/proc/{pid}/cmdline").read_text() for pid in mount.pids())
    assert "cachefs.tiers.fetcher" in shown
    for text in (shown, mount.log()):
        assert SECRET_KEY not in text
        assert "X-Amz-Signature" not in text


def test_a_server_that_hangs_holds_no_fetcher_longer_than_its_job(
    mounts: Mounts, store: Store, proxy: HttpProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CACHEFS_S3_READ_TIMEOUT_S", "300")
    options = f"s3_endpoint={proxy.endpoint},read_deadline=30,job_timeout=4,refresh=0.3"
    mount = mounts(store.url).start(options)
    read_piece(mount, 0)
    proxy.script.play(Fault("hang"), matches=is_pack)
    begun_s = time.monotonic()
    assert read_piece(mount, 1) == piece(1)
    assert time.monotonic() - begun_s < 4
    proxy.script.stop()
    assert mount.metrics()["fetcher_deaths"] == 0


def test_a_mount_of_a_server_that_is_away_or_refuses_fails_clearly(
    mounts: Mounts, store: Store, proxy: HttpProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CACHEFS_S3_RETRIES", "0")
    mount = mounts(store.url)
    option = f"s3_endpoint={proxy.endpoint}"
    for fault, code, cause in (
        (Fault("hang"), 4, "Read timeout"),
        (Fault("status", status=503), 4, "503 SlowDown"),
        (Fault("status", status=403, code="AccessDenied"), 9, "403 AccessDenied"),
        (Fault("status", status=404, code="NoSuchKey"), 3, "cachefs init"),
        (Fault("status", status=404, code="NoSuchBucket"), 9, "no such bucket"),
    ):
        proxy.script.play_always(fault)
        done = mount.try_start(option)
        assert (done.returncode, cause in done.stderr) == (code, True), done.stderr
        assert done.stderr.count("\n") == 1
        assert not mount.is_mounted()
    proxy.script.stop()
    proxy.go_down()
    done = mount.try_start(option)
    proxy.go_up()
    assert (done.returncode, done.stderr.count("\n")) == (4, 1), done.stderr


def test_a_line_in_fstab_is_enough(
    s3: S3Server, mounts: Mounts, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What mount(8) runs has no environment: all is in its options and in a file."""
    mount = mounts(store.url)
    credentials = mount.mountpoint.with_name(f"credentials-{uuid.uuid4().hex}")
    environment = s3.environment()
    credentials.write_text(
        f"[images]\naws_access_key_id = {environment['AWS_ACCESS_KEY_ID']}\n"
        f"aws_secret_access_key = {environment['AWS_SECRET_ACCESS_KEY']}\n"
    )
    for name in [*environment, "CACHEFS_S3_READ_TIMEOUT_S"]:
        monkeypatch.delenv(name)
        mount.environment.pop(name, None)
    mount.start(
        f"s3_endpoint={s3.endpoint},s3_region=us-east-1,s3_profile=images,"
        f"s3_credentials={credentials},_netdev".removesuffix(",_netdev")
    )
    assert (read_direct(mount / "cold") == COLD) is True
