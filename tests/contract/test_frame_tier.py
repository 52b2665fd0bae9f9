"""One suite that every L2 passes, each against its real server."""

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import pytest

from cachefs.config import L2Section
from cachefs.errors import TierError
from cachefs.model.address import parse_l2_address
from cachefs.tiers.breaker import Breaker
from cachefs.tiers.l2.bounded import Bounded, Hedged
from cachefs.tiers.l2.breaker import CircuitBreaker
from cachefs.tiers.l2.build import open_tier
from cachefs.tiers.l2.retry import Retrying
from cachefs.tiers.l2.seam import FrameTier
from cachefs.tiers.l2.workers import Workers
from tests.l2_servers import (
    Server,
    make_certificates,
    memcached_server,
    redis_cluster,
    redis_sentinel,
    redis_server,
)
from tests.mount.mounts import wait_for
from tests.timing import Stopwatch

WAIT_S = 5.0
PASSWORD = "a secret, with spaces"

Running = tuple[list[Server], L2Section]
Opener = Callable[..., FrameTier]


@contextmanager
def plain_redis(folder: Path) -> Iterator[Running]:
    with redis_server(folder) as server:
        yield [server], L2Section(url=f"redis://127.0.0.1:{server.port}/3")


@contextmanager
def unix_redis(folder: Path) -> Iterator[Running]:
    path = f"/tmp/cachefs-l2-{os.getpid()}.sock"
    with redis_server(folder, "--unixsocket", path) as server:
        wait_for(Path(path).is_socket, "Redis' second listener")
        yield [server], L2Section(url=f"redis+unix://{path}")


@contextmanager
def tls_acl_redis(folder: Path) -> Iterator[Running]:
    authority, cert, key = make_certificates(folder / "tls")
    password_file = folder / "password"
    password_file.write_text(PASSWORD + "\n")
    options = ["--port", "0", "--tls-port", "PORT", "--tls-auth-clients", "no"]
    options += ["--tls-cert-file", str(cert), "--tls-key-file", str(key)]
    options += ["--tls-ca-cert-file", str(authority)]
    acl = folder / "users.acl"
    hashed = hashlib.sha256(PASSWORD.encode()).hexdigest()
    acl.write_text(
        f"user default off\nuser cachefs on #{hashed} ~cachefs:* +mget +set +expire +exists +ping\n"
    )
    with redis_server(folder, *options, "--aclfile", str(acl)) as server:
        yield (
            [server],
            L2Section(
                url=f"rediss://127.0.0.1:{server.port}",
                user="cachefs",
                password_file=str(password_file),
                ca_file=str(authority),
            ),
        )


@contextmanager
def cluster(folder: Path) -> Iterator[Running]:
    with redis_cluster(folder) as nodes:
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in nodes)
        yield list(nodes), L2Section(url=f"redis+cluster://{hosts}")


@contextmanager
def sentinel(folder: Path) -> Iterator[Running]:
    with (
        redis_server(folder / "master") as master,
        redis_sentinel(folder / "sentinel", master, "frames") as watcher,
    ):
        url = f"redis+sentinel://127.0.0.1:1,127.0.0.1:{watcher.port}/frames/1"
        yield [master], L2Section(url=url)


@contextmanager
def memcached(folder: Path) -> Iterator[Running]:
    with memcached_server(folder) as server:
        yield [server], L2Section(url=f"memcached://127.0.0.1:{server.port}")


@contextmanager
def two_memcached(folder: Path) -> Iterator[Running]:
    with memcached_server(folder / "1") as first, memcached_server(folder / "2") as second:
        url = f"memcached://127.0.0.1:{first.port},127.0.0.1:{second.port}"
        yield [first, second], L2Section(url=url)


KINDS: dict[str, Callable[[Path], AbstractContextManager[Running]]] = {
    "redis": plain_redis,
    "redis by socket": unix_redis,
    "redis with TLS and ACL": tls_acl_redis,
    "redis cluster": cluster,
    "redis sentinel": sentinel,
    "memcached": memcached,
    "two memcached": two_memcached,
}


@pytest.fixture(scope="module", params=KINDS)
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    with KINDS[request.param](tmp_path_factory.mktemp("l2")) as servers:
        yield servers


@pytest.fixture
def opened() -> Iterator[Opener]:
    """Opens tiers, and closes them when the test ends."""
    with ExitStack() as stack:

        def open_one(settings: L2Section, answer_wait_s: float = WAIT_S) -> FrameTier:
            tier = open_tier(parse_l2_address(settings.url), settings, answer_wait_s)
            stack.callback(tier.close)
            return tier

        yield open_one


def wrapped(tier: FrameTier) -> FrameTier:
    workers = Workers(4)
    return CircuitBreaker(
        Retrying(Hedged(Bounded(tier, Workers(4)), workers), 1),
        Breaker(3, 0.1, 1),
        calls_probe=True,
    )


@pytest.fixture(params=["bare", "wrapped"])
def tier(opened: Opener, running: Running, request: pytest.FixtureRequest) -> FrameTier:
    bare = opened(running[1])
    return wrapped(bare) if request.param == "wrapped" else bare


def some_frames(count: int, size_bytes: int = 1000) -> dict[bytes, bytes]:
    return {os.urandom(32): os.urandom(size_bytes) for _ in range(count)}


def test_frames_come_back_in_the_order_of_the_question(tier: FrameTier) -> None:
    frames = some_frames(50)
    assert tier.put(frames, WAIT_S) == 50
    ids = list(frames)[::-1]
    unknown = os.urandom(32)
    assert tier.get([*ids[:20], unknown, *ids[20:]], WAIT_S) == [
        *(frames[identity] for identity in ids[:20]),
        None,
        *(frames[identity] for identity in ids[20:]),
    ]


def test_a_miss_is_none_and_no_error(tier: FrameTier) -> None:
    assert tier.get([os.urandom(32)], WAIT_S) == [None]
    assert tier.touch([os.urandom(32)], WAIT_S) == [False]


def test_every_byte_is_kept(tier: FrameTier) -> None:
    frames = {bytes([n] * 32): bytes(range(256)) * n + b"\r\nEND\r\n\x00" for n in range(1, 20)}
    tier.put(frames, WAIT_S)
    assert tier.get(list(frames), WAIT_S) == list(frames.values())


def test_a_frame_is_written_over(tier: FrameTier) -> None:
    [(identity, _)] = some_frames(1).items()
    tier.put({identity: b"wrong"}, WAIT_S)
    tier.put({identity: b"right"}, WAIT_S)
    assert tier.get([identity], WAIT_S) == [b"right"]


def test_touch_tells_what_is_here(tier: FrameTier) -> None:
    frames = some_frames(3)
    tier.put(frames, WAIT_S)
    here = list(frames)
    assert tier.touch([here[0], os.urandom(32), here[2]], WAIT_S) == [True, False, True]


def test_a_frame_lives_for_its_ttl(opened: Opener, running: Running) -> None:
    _, settings = running
    # Memcached counts whole seconds: the first may be over at once.
    short = settings.model_copy(update={"ttl_s": 2})
    brief = opened(short, WAIT_S)
    frames = some_frames(1)
    brief.put(frames, WAIT_S)
    assert brief.get(list(frames), WAIT_S) == list(frames.values())
    end_s = time.monotonic() + 30
    while brief.get(list(frames), WAIT_S) != [None]:
        assert time.monotonic() < end_s
        time.sleep(0.1)


def test_without_a_ttl_frames_stay(opened: Opener, running: Running) -> None:
    _, settings = running
    forever = settings.model_copy(update={"ttl_s": 0})
    tier = opened(forever, WAIT_S)
    frames = some_frames(2)
    assert tier.put(frames, WAIT_S) == 2
    assert tier.touch(list(frames), WAIT_S) == [True, True]
    assert tier.get(list(frames), WAIT_S) == list(frames.values())


def test_another_prefix_is_another_place(opened: Opener, running: Running, tier: FrameTier) -> None:
    _, settings = running
    frames = some_frames(1)
    tier.put(frames, WAIT_S)
    if settings.user:
        return  # its ACL knows one prefix only
    other = settings.model_copy(update={"key_prefix": "other:"})
    assert opened(other, WAIT_S).get(list(frames), WAIT_S) == [None]


def test_a_probe_and_its_advice(tier: FrameTier) -> None:
    tier.probe(WAIT_S)
    assert tier.advice() == ""


def test_a_server_that_hangs_is_left_in_time(opened: Opener, running: Running) -> None:
    servers, settings = running
    tier = opened(settings, 1.0)
    bounded = Bounded(tier, Workers(2))
    frames = some_frames(4)
    bounded.put(frames, WAIT_S)
    for server in servers:
        server.pause()
    try:
        watch = Stopwatch()
        with pytest.raises(TierError):
            bounded.get(list(frames), 0.05)
        assert watch.passed_s < 0.15
        with pytest.raises(TierError):
            tier.probe(0.05)
    finally:
        for server in servers:
            server.go_on()
    tier.probe(WAIT_S)
    assert bounded.get(list(frames), WAIT_S) == list(frames.values())


def test_a_server_that_starts_again_is_used_again(opened: Opener, running: Running) -> None:
    """Empty or not; the first request may find the old connection dead."""
    servers, settings = running
    if settings.url.startswith("redis+sentinel"):
        return  # its sentinel would look for another master: that is its test below
    tier = Retrying(opened(settings, WAIT_S), 2)
    frames = some_frames(4)
    tier.put(frames, WAIT_S)
    for server in servers:
        server.stop()
    with pytest.raises(TierError):
        tier.get(list(frames), 0.2)
    for server in servers:
        server.start()
    end_s = time.monotonic() + 60
    while True:
        try:
            if tier.put(frames, WAIT_S) == 4:
                break
        except TierError:
            assert time.monotonic() < end_s
        time.sleep(0.05)
    assert tier.get(list(frames), WAIT_S) == list(frames.values())
