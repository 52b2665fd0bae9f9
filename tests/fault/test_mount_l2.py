"""L2 fails in every way: a reader sees nothing but latency, and L2 is used again by itself."""

import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard

from cachefs.codec.frame import HEADER, ZSTD
from cachefs.store.store import Store
from tests.l2_proxy import Faults, Proxy, proxied
from tests.l2_servers import Redis, memcached_server, redis_server
from tests.mount.mounts import Mount, Mounts, made_mounts, read_direct, wait_for
from tests.mount.samples import KIB, MIB, mixture, noise, store_path
from tests.stores import import_bytes, new_store

pytestmark = pytest.mark.mount

CHUNK_BYTES = 64 * KIB
CHUNKS = 40
HALF = CHUNKS // 2
DATA = noise(CHUNKS * CHUNK_BYTES, 11)
PROSE = mixture(24 * CHUNK_BYTES, 12)
BREAKER: dict[str, object] = {"breaker_pause_s": 0.05, "breaker_longest_pause_s": 0.2}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    with redis_server(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture
def redis(server: Redis) -> Redis:
    """An empty Redis."""
    with server.client() as client:
        client.flushall()
    return server


@pytest.fixture
def proxy(redis: Redis) -> Iterator[Proxy]:
    with proxied(redis.port) as proxy:
        yield proxy
        proxy.heal()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = new_store(tmp_path_factory.mktemp("store"))
    import_bytes(store, DATA, "image", CHUNK_BYTES)
    import_bytes(store, PROSE, "prose", CHUNK_BYTES)
    import_bytes(store, noise(3 * MIB, 13), "large", MIB)
    return store


def start(
    mounts: Mounts,
    store: Store,
    folder: Path,
    url: str,
    options: str = "",
    *,
    fails: bool = False,
    **l2: object,
) -> Mount:
    """Mount with an L2 of these settings, and an empty L1.

    L2 has time to answer, unless it is to fail. Nothing is fetched ahead, unless the options say
    so: what each read costs is looked at.
    """
    mount = mounts(store.url)
    config = folder / f"{mount.mountpoint.parent.name}.toml"
    settings = {"url": url, "timeout_s": 5, **BREAKER, **l2}
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    config.write_text("\n".join(["[l2]", *lines, ""]))
    verb, *rest = mount.arguments(",".join(filter(None, ["fetchers=1,noprefetch", options])))
    done = mount.command(verb, "--config", config, *rest)
    assert (done.returncode == 0) is not fails, (done.stderr, mount.log())
    return mount


def address(server: Redis | Proxy) -> str:
    return f"redis://127.0.0.1:{server.port}"


def read_chunks(mount: Mount, first: int, last: int) -> list[float]:
    """Read chunks one after another and compare; returns how long each took."""
    times_s = []
    for number in range(first, last):
        begin_s = time.monotonic()
        found = read_direct(mount / "image", number * CHUNK_BYTES, CHUNK_BYTES)
        times_s.append(time.monotonic() - begin_s)
        assert found == DATA[number * CHUNK_BYTES : (number + 1) * CHUNK_BYTES]
    return times_s


def settled(mount: Mount) -> dict[str, int]:
    """Return the metrics once nothing is under way, nor comes to L2 after an answer."""
    mount.check_idle()
    before: dict[str, int] = {}
    while (now := l2_counts(metrics := mount.metrics())) != before:
        before = now
        time.sleep(0.2)
    return metrics


def l2_counts(metrics: dict[str, int]) -> dict[str, int]:
    return {name: count for name, count in metrics.items() if name.startswith("l2_")}


@pytest.fixture(scope="module")
def frames(
    server: Redis, store: Store, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """What another host has put into L2 when it has read all."""
    folder = tmp_path_factory.mktemp("other")
    with server.client() as client:
        client.flushall()
    with (
        tempfile.TemporaryDirectory(prefix="cachefs-") as short,
        made_mounts(Path(short)) as mounts,
    ):
        mount = start(mounts, store, folder, address(server))
        read_chunks(mount, 0, CHUNKS)
        # A fetcher queues what it has answered already.
        wait_for(lambda: mount.metrics()["l2_backfilled"] == CHUNKS, "the back-fill")
        settled(mount)
    found = server.frames()
    assert len(found) == CHUNKS
    return found


@pytest.fixture
def full(redis: Redis, frames: dict[str, bytes]) -> Redis:
    """A Redis that has all frames of the image."""
    with redis.client() as client:
        client.flushall()
        client.mset(frames)
    return redis


def test_what_one_host_has_read_another_gets_from_l2(
    mounts: Mounts, store: Store, tmp_path: Path, full: Redis
) -> None:
    mount = start(mounts, store, tmp_path, address(full), "prefetch")
    read_chunks(mount, 0, 1)  # the manifest is here now
    packs = store_path(store) / "packs"
    packs.rename(packs.with_name("away"))
    try:
        read_chunks(mount, 1, CHUNKS)
        assert read_direct(mount / "image") == DATA
    finally:
        packs.with_name("away").rename(packs)
    metrics = settled(mount)
    assert (metrics["l2_chunks"], metrics["l3_chunks"], metrics["l2_misses"]) == (CHUNKS, 0, 0)
    assert metrics["l2_plain_bytes"] == len(DATA)
    assert (metrics["l2_corrupt"], metrics["l2_errors"], metrics["l2_backfilled"]) == (0, 0, 0)
    assert f"  L2        redis://127.0.0.1:{full.port}, in use: {CHUNKS} chunks from it" in (
        mount.command("status", mount.mountpoint).stdout
    )


FAULTS: dict[str, Faults] = {
    "refused": Faults(refuse=True),
    "hung": Faults(hang=True),
    "reset in mid-reply": Faults(reset_after_bytes=5000),
    "slow by 2 s": Faults(delay_s=2),
    "dripping": Faults(drip=True),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_costs_a_reader_nothing_but_latency(
    mounts: Mounts, store: Store, tmp_path: Path, full: Redis, proxy: Proxy, kind: str
) -> None:
    mount = start(mounts, store, tmp_path, address(proxy), timeout_s=0.05)
    read_chunks(mount, 0, 2)
    proxy.faults = FAULTS[kind]
    times_s = read_chunks(mount, 2, HALF)
    # Three reads wait for L2, 50 ms each; the rest goes past it.
    assert max(times_s) < 0.5, times_s
    assert sum(times_s) < 2, times_s
    if kind != "reset in mid-reply":  # there, a probe is short enough to come through
        wait_for(lambda: mount.metrics()["l2_open_breakers"] == 1, "an open breaker")
        assert mount.daemon()["l2"]["error"]
        assert mount.daemon()["l2"]["bypassed_by"] == 1
        assert "left alone, it does not answer" in (
            mount.command("status", mount.mountpoint).stdout
        )
    before = mount.metrics()
    assert before["l2_errors"] >= 3
    assert before["l2_bypassed"] > 0
    proxy.heal()
    wait_for(lambda: mount.metrics()["l2_open_breakers"] == 0, "the probe")
    assert mount.daemon()["l2"]["error"] is None
    read_chunks(mount, HALF, CHUNKS)
    metrics = settled(mount)
    assert metrics["l2_chunks"] - before["l2_chunks"] == CHUNKS - HALF
    assert metrics["read_errors"] == 0
    assert "is left alone until it answers again" in mount.log()
    assert "answers again" in mount.log()


def test_redis_starts_again_and_is_empty(mounts: Mounts, store: Store, tmp_path: Path) -> None:
    with redis_server(tmp_path / "redis") as redis:
        mount = start(mounts, store, tmp_path, address(redis))
        read_chunks(mount, 0, 5)
        settled(mount)
        redis.stop()
        read_chunks(mount, 5, 15)
        redis.start()
        wait_for(lambda: mount.metrics()["l2_open_breakers"] == 0, "the probe")
        read_chunks(mount, 15, 25)
        settled(mount)
        wait_for(lambda: len(redis.frames()) >= 10, "frames in the new Redis")


def test_redis_is_away_when_the_mount_starts(mounts: Mounts, store: Store, tmp_path: Path) -> None:
    with redis_server(tmp_path / "redis") as redis:
        redis.stop()
        mount = start(mounts, store, tmp_path, address(redis))
        read_chunks(mount, 0, 10)
        redis.start()
        wait_for(lambda: mount.metrics()["l2_open_breakers"] == 0, "the probe")
        read_chunks(mount, 10, 20)
        settled(mount)
        assert len(redis.frames()) == 10


def test_redis_has_no_memory_left(mounts: Mounts, store: Store, tmp_path: Path) -> None:
    """It says so at each write; what it has is still read, and writing begins again by itself."""
    options = ("--maxmemory", "2mb", "--maxmemory-policy", "noeviction")
    with redis_server(tmp_path / "redis", *options) as redis:
        mount = start(mounts, store, tmp_path, address(redis))
        read_chunks(mount, 0, HALF)
        metrics = settled(mount)
        assert metrics["l2_backfill_dropped"] > 0
        assert metrics["l2_errors"] > 0
        assert metrics["l2_bypassed"] == 0  # what fails is writing
        told = mount.daemon()["l2"]
        assert "noeviction" in told["advice"]
        assert "maxmemory" in told["error"]
        assert mount.log().count("set maxmemory, and maxmemory-policy allkeys-lru") == 1
        redis.configure(maxmemory="64mb", maxmemory_policy="allkeys-lru")
        written = metrics["l2_backfilled"]
        for number in range(HALF, CHUNKS):
            read_chunks(mount, number, number + 1)
            time.sleep(0.02)  # so that some come after the writing breaker's pause
        assert settled(mount)["l2_backfilled"] > written
        assert mount.metrics()["read_errors"] == 0


def test_redis_is_a_read_only_replica(
    mounts: Mounts, store: Store, tmp_path: Path, redis: Redis
) -> None:
    with redis.client() as client:
        client.execute_command("REPLICAOF", "127.0.0.1", "1")
        try:
            mount = start(mounts, store, tmp_path, address(redis))
            read_chunks(mount, 0, HALF)
            metrics = settled(mount)
            assert "read only replica" in mount.daemon()["l2"]["error"]
        finally:
            client.execute_command("REPLICAOF", "NO", "ONE")
    assert (metrics["l2_backfilled"], metrics["l2_bypassed"]) == (0, 0)
    assert metrics["l2_misses"] == HALF
    for number in range(HALF, CHUNKS):
        read_chunks(mount, number, number + 1)
        time.sleep(0.02)
    assert settled(mount)["l2_backfilled"] > 0


def test_a_wrong_password_and_then_the_right_one(
    mounts: Mounts, store: Store, tmp_path: Path, redis: Redis
) -> None:
    password_file = tmp_path / "password"
    password_file.write_text("not-the-one-1234\n")
    with redis.client() as client:
        client.execute_command(
            "ACL", "SETUSER", "reader", "on", ">the-right-one-1234", "~*", "+@all"
        )
        client.execute_command("ACL", "SETUSER", "default", "off")
    with redis.client(username="reader", password="the-right-one-1234") as client:
        try:
            mount = start(
                mounts,
                store,
                tmp_path,
                address(redis),
                user="reader",
                password_file=str(password_file),
            )
            read_chunks(mount, 0, 10)
            wait_for(lambda: mount.metrics()["l2_open_breakers"] == 1, "an open breaker")
            assert "invalid username-password pair" in mount.daemon()["l2"]["error"]
            password_file.write_text("the-right-one-1234\n")
            wait_for(lambda: mount.metrics()["l2_open_breakers"] == 0, "the right password")
            read_chunks(mount, 10, 20)
            settled(mount)
            assert len(client.keys("cachefs:*")) == 10
            assert_nowhere(mount, "-one-1234")
        finally:
            client.execute_command("ACL", "SETUSER", "default", "on")


def assert_nowhere(mount: Mount, secret: str) -> None:
    """A secret is neither on a command line, nor in the log, nor in what `status` tells."""
    pids = mount.pids()
    assert len(pids) >= 3
    for pid in pids:
        assert secret.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
    assert secret not in mount.log()
    assert secret not in json.dumps(mount.status())


def test_a_password_from_the_environment(
    mounts: Mounts, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CACHEFS_L2_PASSWORD", "from-outside-1234")
    with redis_server(tmp_path / "redis", "--requirepass", "from-outside-1234") as redis:
        mount = start(mounts, store, tmp_path, address(redis))
        read_chunks(mount, 0, 5)
        wait_for(lambda: mount.metrics()["l2_backfilled"] == 5, "the back-fill")
        settled(mount)
        assert_nowhere(mount, "from-outside-1234")


def test_a_password_in_the_address_is_refused_and_not_repeated(
    mounts: Mounts, store: Store, tmp_path: Path
) -> None:
    mount = start(mounts, store, tmp_path, "redis://me:hidden-1234@127.0.0.1:1", fails=True)
    done = mount.try_start("l2=redis://me:hidden-1234@127.0.0.1:1")
    assert done.returncode == 2
    assert "l2.password_file" in done.stderr
    assert "hidden-1234" not in done.stderr


# --------------------------------------------------------------------- what Redis holds is wrong
def bomb(frame: bytes) -> bytes:
    """A frame that says it is as long as the right one, and holds 256 MiB of zeros."""
    zeros = zstandard.ZstdCompressor().compressobj(size=256 * MIB)
    payload = b"".join(zeros.compress(bytes(MIB)) for _ in range(256)) + zeros.flush()
    return HEADER.pack(ZSTD, 1, 0, CHUNK_BYTES) + payload


def honest_bomb(frame: bytes) -> bytes:
    """The same, in a frame that says so."""
    return HEADER.pack(ZSTD, 1, 0, 256 * MIB) + bomb(frame)[HEADER.size :]


WRONG: dict[str, Callable[[bytes], bytes]] = {
    "other bytes": lambda frame: random.Random(1).randbytes(len(frame)),
    "one flipped bit": lambda frame: frame[:3000] + bytes([frame[3000] ^ 4]) + frame[3001:],
    "truncated": lambda frame: frame[: len(frame) // 2],
    "a header only": lambda frame: frame[: HEADER.size],
    "empty": lambda frame: b"",
    "too long": lambda frame: frame + b"more",
    "a bomb": bomb,
    "a bomb that says so": honest_bomb,
    "another codec": lambda frame: b"\xfe" + frame[1:],
}


def test_what_is_wrong_in_redis_is_never_read_and_replaced(
    mounts: Mounts, store: Store, tmp_path: Path, full: Redis
) -> None:
    good = full.frames()
    keys = list(good)
    random.Random(2).shuffle(keys)
    swapped, rest = keys[:4], keys[4:]
    with full.client() as client:
        for ours, theirs in zip(swapped, swapped[1:] + swapped[:1], strict=True):
            client.set(ours, good[theirs])
        for key, change in zip(rest, WRONG.values(), strict=False):
            client.set(key, change(good[key]))
        client.delete(rest[-1])
        client.rpush(rest[-1], "a list, and no string")
    mount = start(mounts, store, tmp_path, address(full), scan_bytes=1)
    read_chunks(mount, 0, 3)
    assert read_direct(mount / "image") == DATA
    metrics = settled(mount)
    assert metrics["l2_corrupt"] == 4 + len(WRONG)
    assert metrics["l2_chunks"] == CHUNKS - 4 - len(WRONG) - 1
    assert metrics["l2_misses"] == 1
    assert metrics["l3_corrupt"] == 0
    assert metrics["read_errors"] == 0
    assert all_fetchers_peak_bytes(mount) < 200 * MIB
    # Replaced although nothing else goes into L2: all is a scan here.
    with full.client() as client:
        client.delete(rest[-1])
    assert full.frames() == {key: good[key] for key in good if key != rest[-1]}


def all_fetchers_peak_bytes(mount: Mount) -> int:
    peaks = []
    for pid in mount.daemon()["fetchers"]["pids"]:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
        [line] = [line for line in status.splitlines() if line.startswith("VmHWM")]
        peaks.append(int(line.split()[1]) * KIB)
    return max(peaks)


def test_bits_that_flip_on_the_wire(
    mounts: Mounts, store: Store, tmp_path: Path, full: Redis, proxy: Proxy
) -> None:
    """In frames, in lengths, in anything: an answer is right, or it is none."""
    chance = random.Random(3)

    def flip(piece: bytes) -> bytes:
        if chance.random() < 0.5:
            return piece
        at = chance.randrange(min(len(piece), 40)) if chance.random() < 0.5 else -1
        changed = bytearray(piece)
        changed[at] ^= 1 << chance.randrange(8)
        return bytes(changed)

    mount = start(mounts, store, tmp_path, address(proxy), timeout_s=0.05)
    read_chunks(mount, 0, 1)
    proxy.faults = Faults(change=flip)
    read_chunks(mount, 1, CHUNKS)
    proxy.heal()
    wait_for(lambda: mount.metrics()["l2_open_breakers"] == 0, "the probe")
    metrics = settled(mount)
    assert metrics["l2_corrupt"] + metrics["l2_errors"] > 0
    assert metrics["read_errors"] == 0
    assert read_direct(mount / "image") == DATA


# ------------------------------------------------------------------------------- what goes into L2
def test_a_scan_does_not_fill_l2(
    mounts: Mounts, store: Store, tmp_path: Path, redis: Redis
) -> None:
    mount = start(mounts, store, tmp_path, address(redis), scan_bytes=5 * CHUNK_BYTES)
    assert read_direct(mount / "image") == DATA
    metrics = settled(mount)
    assert 0 < metrics["l2_backfilled"] <= 6
    assert metrics["l2_backfilled"] + metrics["l2_scan_chunks"] == CHUNKS


def test_a_slow_l2_drops_the_back_fill_and_delays_nobody(
    mounts: Mounts, store: Store, tmp_path: Path, proxy: Proxy
) -> None:
    """It takes what comes, slowly: the queue has a bound."""
    queue_bytes = 4 * CHUNK_BYTES
    mount = start(
        mounts, store, tmp_path, address(proxy), backfill_queue_bytes=queue_bytes, timeout_s=0.05
    )
    read_chunks(mount, 0, 1)
    settled(mount)
    proxy.faults = Faults(delay_s=0.6)
    times_s = read_chunks(mount, 1, CHUNKS)
    assert sum(times_s) < 2
    assert mount.metrics()["l2_queued_bytes"] <= queue_bytes
    proxy.heal()
    wait_for(lambda: mount.metrics()["l2_open_breakers"] == 0, "the probe")
    metrics = settled(mount)
    assert metrics["l2_backfill_dropped"] > 0


def test_a_chunk_that_leaves_l1_is_in_l2(
    mounts: Mounts, store: Store, tmp_path: Path, redis: Redis
) -> None:
    mount = start(mounts, store, tmp_path, address(redis), "quota=1MiB", demote=True, scan_bytes=1)
    read_chunks(mount, 0, CHUNKS)  # all is a scan: nothing goes to L2 but what leaves L1
    wait_for(lambda: mount.metrics()["evicted_chunks"] > 0, "evictions")
    wait_for(lambda: mount.metrics()["l2_demoted"] > 0, "demotions")
    metrics = settled(mount)
    assert metrics["l2_demoted"] == metrics["l2_backfilled"] == len(redis.frames())
    assert metrics["l2_demoted"] + metrics["l2_demotions_lost"] <= metrics["evicted_chunks"]
    mount.umount()
    reader = start(mounts, store, tmp_path, address(redis))
    read_chunks(reader, 0, CHUNKS)
    assert settled(reader)["l2_chunks"] == metrics["l2_demoted"]
    assert reader.metrics()["l2_corrupt"] == 0


def test_frames_in_l2_can_have_another_codec(
    mounts: Mounts, store: Store, tmp_path: Path, redis: Redis
) -> None:
    """And so another length than in the store."""
    mount = start(mounts, store, tmp_path, address(redis), codec="lz4", min_ratio=1.1)
    assert read_direct(mount / "prose") == PROSE
    settled(mount)
    assert {frame[0] for frame in redis.frames().values()} == {0, 2}
    reader = start(mounts, store, tmp_path, address(redis))
    assert read_direct(reader / "prose") == PROSE
    metrics = settled(reader)
    assert (metrics["l2_corrupt"], metrics["l3_chunks"]) == (0, 0)
    assert metrics["l2_chunks"] > 10


# --------------------------------------------------------------------------------------- Memcached
def test_memcached_holds_what_fits(mounts: Mounts, store: Store, tmp_path: Path) -> None:
    metrics: dict[str, int] = {}
    with memcached_server(tmp_path / "memcached") as server:
        url = f"memcached://127.0.0.1:{server.port}"
        for _ in range(2):
            mount = start(mounts, store, tmp_path, url)
            assert read_direct(mount / "prose") == PROSE
            assert read_direct(mount / "large") == noise(3 * MIB, 13)
            metrics = settled(mount)
            assert metrics["l2_errors"] == 0
        assert metrics["l2_chunks"] > 10
        assert metrics["l3_chunks"] == 3  # frames of 1 MiB are over its limit
        server.stop()
        mount = start(mounts, store, tmp_path, url)
        assert read_direct(mount / "prose") == PROSE
        server.start()
        wait_for(lambda: mount.metrics()["l2_open_breakers"] == 0, "the probe")
