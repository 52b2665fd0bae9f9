"""Chaos: mounts a store on S3 with an L2 in Redis, and lets go wrong what can, by a seed.

The seed decides which faults come when and what is read; what threads and processes make of it is
the machine's. Whatever happens, no byte is wrong, no read fails that need not, and in the end
nothing waits, is held or leaks.
"""

import contextlib
import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cachefs.store.store import create_store
from tests.chaos.faults import (
    Trouble,
    troubles_of_disk,
    troubles_of_processes,
    troubles_of_redis,
    troubles_of_s3,
)
from tests.chaos.load import Findings, Reader
from tests.disk.faulty import FaultyDisk
from tests.l2_proxy import proxied
from tests.l2_servers import redis_server
from tests.mount.mounts import Mount, made_mounts, read_direct, wait_for
from tests.mount.samples import KIB, MIB, mixture
from tests.proxies.http_proxy import HttpProxy
from tests.proxies.proxy import closing
from tests.s3.servers import S3Server
from tests.stores import import_bytes

CHUNK_BYTES = 64 * KIB
IMAGE_BYTES = 16 * MIB
READERS = 6
READ_DEADLINE_S = 90
"""Longer than any fault that lasts, retries and a new daemon included: so no read may fail."""

LAST_READ_S = 200.0
_CONFIG = """
[l2]
url = {url}
breaker_pause_s = 0.1
breaker_longest_pause_s = 1
[s3]
read_timeout_s = 1
connect_timeout_s = 1
"""


@dataclass
class Record:
    """Which faults there were, and when a read may have failed for them."""

    counts: Counter[str] = field(default_factory=Counter)
    may_fail_until_s: float = 0.0

    def may_fail(self, begun_s: float) -> bool:
        """Whether a read that began then may end with EIO."""
        return begun_s < self.may_fail_until_s


def run_chaos(server: S3Server, folder: Path, seconds: float, seed: int) -> str:
    """Run for so long; returns what happened.

    Raises:
        AssertionError: something was wrong.
    """
    chosen, record, findings = random.Random(seed), Record(), Findings()
    images = {"fails": mixture(IMAGE_BYTES, seed), "holds": mixture(IMAGE_BYTES, seed + 1)}
    with _world(server, folder, images, chosen, record) as (mount, troubles):
        stop = threading.Event()
        readers = [
            Reader(mount / name, images[name], f"{seed} {number}", findings, stop, record.may_fail)
            for number, name in enumerate(list(images) * (READERS // 2))
        ]
        for reader in readers:
            reader.start()
        try:
            _make_trouble(troubles, chosen, record, time.monotonic() + seconds)
        finally:
            stop.set()
            for reader in readers:
                reader.join(LAST_READ_S)
        assert not any(reader.is_alive() for reader in readers), f"a read hangs\n{mount.log()}"
        assert not findings.wrong, "\n".join([*findings.wrong[:20], *_told(mount)])
        _check_end(mount, images)
        return _report(mount, findings, record)


@contextlib.contextmanager
def _world(
    server: S3Server, folder: Path, images: dict[str, bytes], chosen: random.Random, record: Record
) -> Iterator[tuple[Mount, list[Trouble]]]:
    url = f"s3://{server.bucket}/chaos-{os.getpid()}-{chosen.randrange(1 << 30)}"
    store = create_store(url)
    for name, data in images.items():
        import_bytes(store, data, name, CHUNK_BYTES, {"on_outage": name.removesuffix("s")})
    work = folder / "work"
    work.mkdir()
    with contextlib.ExitStack() as stack:
        s3_proxy = stack.enter_context(closing(HttpProxy(server.address)))
        redis = stack.enter_context(redis_server(work / "redis"))
        redis_proxy = stack.enter_context(proxied(redis.port))
        mount = stack.enter_context(made_mounts(work))(store.url)
        disk = FaultyDisk(mount.cache, work)
        stack.callback(disk.close)
        troubles = [
            *troubles_of_s3(s3_proxy),
            *troubles_of_redis(redis_proxy, redis),
            *troubles_of_disk(disk),
            *troubles_of_processes(mount, chosen),
        ]
        config = work / "chaos.toml"
        config.write_text(_CONFIG.format(url=json.dumps(f"redis://127.0.0.1:{redis_proxy.port}")))
        mount.environment |= disk.environment
        verb, *rest = mount.arguments(
            f"s3_endpoint={s3_proxy.endpoint},quota=16MiB,fetchers=2,refresh=1,"
            f"read_deadline={READ_DEADLINE_S},job_timeout=5,disk_patience=0.5,scrub=1MiB"
        )
        done = mount.command(verb, "--config", config, *rest)
        assert done.returncode == 0, (done.stderr, mount.log())
        yield mount, troubles


def _make_trouble(
    troubles: list[Trouble], chosen: random.Random, record: Record, end_s: float
) -> None:
    """Let faults begin and end at random until the time is over; one a tier at a time."""
    tiers = sorted({trouble.tier for trouble in troubles})
    by_tier = {tier: [one for one in troubles if one.tier == tier] for tier in tiers}
    active: dict[str, tuple[float, Trouble]] = {}
    quiet_until_s = {tier: time.monotonic() + chosen.uniform(0, 3) for tier in tiers}
    try:
        while time.monotonic() < end_s:
            now_s = time.monotonic()
            for tier in tiers:
                if tier in active and now_s >= active[tier][0]:
                    _, trouble = active.pop(tier)
                    _end(trouble, record)
                    quiet_until_s[tier] = now_s + trouble.quiet_s + chosen.uniform(0, 2)
                elif tier not in active and now_s >= quiet_until_s[tier]:
                    trouble = chosen.choice(by_tier[tier])
                    record.counts[f"{tier}: {trouble.name}"] += 1
                    if trouble.may_fail:
                        record.may_fail_until_s = float("inf")
                    trouble.begin()
                    active[tier] = (now_s + chosen.uniform(0.2, 3), trouble)
            time.sleep(0.02)
    finally:
        for _, trouble in active.values():
            _end(trouble, record)


def _end(trouble: Trouble, record: Record) -> None:
    trouble.end()
    if trouble.may_fail:
        record.may_fail_until_s = time.monotonic() + 0.1


def _check_end(mount: Mount, images: dict[str, bytes]) -> None:
    """All is well again: every byte is right, nothing waits, nothing is held, nothing leaked."""
    for name, data in images.items():
        assert (read_direct(mount / name) == data) is True, name
    mount.check_idle()
    mount.check_slots()
    _wait_until(lambda: mount.supervised()["lane"]["held"] == 0, "no request that is held")
    _wait_until(lambda: mount.supervised()["lane"]["kept"] == 0, "no request that is kept")
    _wait_until(lambda: mount.metrics()["l1_left"] == 0, "an L1 that is used")
    assert mount.scrub()["dropped_chunks"] == 0


def _told(mount: Mount) -> list[str]:
    """What the log says, without what it says at each fault."""
    usual = ("L1 cannot read chunk", "L2 redis", "the disk of L1")
    lines = [line for line in mount.log().splitlines() if not any(map(line.__contains__, usual))]
    return lines[-300:]


def _wait_until(condition: Callable[[], object], what: str) -> None:
    wait_for(condition, what)


def _report(mount: Mount, findings: Findings, record: Record) -> str:
    metrics = mount.metrics()
    told = {
        name: metrics[name]
        for name in ("l1_errors", "l2_errors", "l2_corrupt", "l3_corrupt", "l3_retries")
    }
    reads = (
        f"{findings.reads} reads, {findings.read_bytes / MIB:.0f} MiB, all right; the longest took "
        f"{findings.longest_s:.1f} s; {findings.allowed_errors} failed while bits were flipped"
    )
    lines = [
        reads,
        f"the last of {mount.supervised()['daemon']['restarts'] + 1} daemons counted {told}",
        *(f"  {count:4} {name}" for name, count in sorted(record.counts.items())),
    ]
    return "\n".join(lines)
