"""What can go wrong, as data: for each tier a list of faults that begin and end."""

import contextlib
import errno
import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass

from tests.disk.faulty import FaultyDisk
from tests.l2_proxy import Faults as L2Faults
from tests.l2_proxy import Proxy as L2Proxy
from tests.l2_servers import Redis
from tests.mount.mounts import Mount
from tests.proxies.faults import Fault
from tests.proxies.http_proxy import HttpProxy
from tests.proxies.proxy import flipped

Action = Callable[[], object]


@dataclass(frozen=True)
class Trouble:
    """One fault of one tier.

    Attributes:
        tier: Of which one fault at a time is under way.
        name: For the report.
        begin: Makes it happen.
        end: Makes it stop; for what is over at once, nothing.
        may_fail: Whether a read may end with EIO meanwhile.
        quiet_s: How long its tier is left in peace afterwards.
    """

    tier: str
    name: str
    begin: Action
    end: Action
    may_fail: bool = False
    quiet_s: float = 0.5


def troubles_of_s3(proxy: HttpProxy) -> list[Trouble]:
    """The store: each fault hits all requests, but for flips, which hit some."""
    stop = proxy.script.stop

    def lasting(name: str, fault: Fault) -> Trouble:
        return Trouble("s3", name, lambda: proxy.script.play_always(fault), stop, quiet_s=2.5)

    kinds = {
        "503 SlowDown": Fault("status", status=503, code="SlowDown"),
        "500": Fault("status", status=500, code="InternalError"),
        "timeouts": Fault("hang"),
        "a hang in mid-body": Fault("hang", after=0.5),
        "reset in mid-body": Fault("reset", after=0.5),
        "short bodies": Fault("cut", after=0.5),
        "wrong ranges": Fault("other_range"),
        "200 with an error": Fault("error_body"),
        "slow by 0.3 s": Fault(delay_s=0.3),
    }
    found = [lasting(name, fault) for name, fault in kinds.items()]
    found.append(Trouble("s3", "gone", proxy.go_down, proxy.go_up, quiet_s=2.5))
    flips = [Fault("flip") if number % 3 == 0 else Fault() for number in range(300)]
    found.append(
        Trouble(
            "s3",
            "flipped bits",
            lambda: proxy.script.play(*flips, matches=lambda call: "/packs/" in call),
            stop,
            may_fail=True,
            quiet_s=2.5,
        )
    )
    return found


def troubles_of_redis(proxy: L2Proxy, redis: Redis) -> list[Trouble]:
    """L2: between it and the fetchers, and the server itself."""

    def wire(name: str, faults: L2Faults) -> Trouble:
        return Trouble("redis", name, lambda: setattr(proxy, "faults", faults), proxy.heal)

    def full() -> None:
        redis.configure(maxmemory_policy="noeviction", maxmemory="1mb")

    def roomy() -> None:
        redis.configure(maxmemory="64mb", maxmemory_policy="allkeys-lru")

    return [
        wire("refused", L2Faults(refuse=True)),
        wire("hung on the wire", L2Faults(hang=True)),
        wire("reset in mid-reply", L2Faults(reset_after_bytes=20_000)),
        wire("slow", L2Faults(delay_s=0.2)),
        wire("lying", L2Faults(change=flipped)),
        Trouble("redis", "hung", redis.pause, redis.go_on),
        Trouble("redis", "gone and started again", redis.stop, redis.start),
        Trouble("redis", "out of memory", full, roomy),
    ]


def troubles_of_disk(disk: FaultyDisk) -> list[Trouble]:
    """The disk of L1."""
    kinds: dict[str, dict[str, float]] = {
        "EIO": {"reads": errno.EIO, "writes": errno.EIO},
        "EIO of reads": {"reads": errno.EIO},
        "ENOSPC": {"writes": errno.ENOSPC},
        "read-only": {"writes": errno.EROFS},
        "slow by 1.5 s": {"delay_s": 1.5},
    }
    return [
        Trouble("disk", name, lambda how=how: disk.fail(**how), disk.heal)  # type: ignore[misc]
        for name, how in kinds.items()
    ]


def troubles_of_processes(mount: Mount, chosen: random.Random) -> list[Trouble]:
    """Processes that are killed, and what stands in for them."""

    def kill_fetcher() -> None:
        with contextlib.suppress(OSError, KeyError, IndexError):
            os.kill(chosen.choice(sorted(mount.ask_daemon()["fetchers"]["pids"])), signal.SIGKILL)

    def kill_daemon() -> None:
        pid = mount.supervised()["daemon"]["pid"]
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    return [
        Trouble("fetchers", "a fetcher killed", kill_fetcher, _nothing, quiet_s=1.5),
        Trouble("daemon", "the daemon killed", kill_daemon, _nothing, quiet_s=8),
    ]


def _nothing() -> None:
    """It is over already."""
