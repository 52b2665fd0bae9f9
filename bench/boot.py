"""Guests that start from images in S3, with and without a profile of earlier starts.

The store is a SeaweedFS server behind a proxy that adds 30 ms to each answer and passes at most
100 MB/s; each start has an empty cache; qemu (TCG) reads with O_DIRECT. A Debian system boots to
its login prompt; the next version of its image (updates and more packages, upgraded in place) with
the profile of the version before; another workload checks every file; a guest resumes from a
snapshot of its memory, and somebody logs in. Run it as `make bench-boot`.
"""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import click

from bench import mounts
from bench.table import Table, publish, size
from cachefs.policy.prefetch.profile import from_bytes
from cachefs.store.layout import profile_key
from cachefs.store.store import open_store
from tests.e2e.guest import create_overlay
from tests.e2e.kernel import guest_kernel
from tests.e2e.running import Guest
from tests.images.debian import MARKER, debian_images
from tests.proxies.faults import Fault
from tests.proxies.http_proxy import HttpProxy
from tests.proxies.proxy import closing
from tests.s3.servers import seaweedfs

STORE = "s3://images/boot"
DISK, MEMORY = "guests/debian", "snapshots/debian"
LOGIN, PASSWORD = "login:", "Password:"
MEMORY_MIB = 512
BOOT_WAIT_S = 900.0
JUDGED_S = 8.0
"""After the guest has ended: by then the ledger has judged what nobody has read."""

PROFILE_WAIT_S = 60.0
AIM = 10
LEAST = 5
MOST_BYTES = 1.1
PARTS = ("boot", "check", "resume", "next")


@dataclass(frozen=True)
class Start:
    """What one start took.

    Attributes:
        seconds: Until the guest was there.
        wait_s: Of all its reads, for chunks; what wait at once are counted each.
        stalled_s: In which at least one read waited.
        requests: For chunks, to the store.
        fetched_bytes: As they are in the store.
        unread_bytes: Of these, what was fetched ahead and nobody read.
    """

    seconds: float
    wait_s: float
    stalled_s: float
    requests: int
    fetched_bytes: int
    unread_bytes: int


Guests = Callable[[Path, Path], float]
"""Takes the mount point and an empty folder, runs a guest, and returns its seconds."""


def boot_until(text: str, append: str = "") -> Guests:
    """Return a guest that boots until it says `text`."""

    def run(mountpoint: Path, folder: Path) -> float:
        overlay = create_overlay(mountpoint / DISK, folder / "overlay.qcow2")
        begin_s = time.perf_counter()
        guest = Guest(guest_kernel(), overlay, folder, append, MEMORY_MIB)
        try:
            guest.wait_for(text, BOOT_WAIT_S)
            return time.perf_counter() - begin_s
        finally:
            guest.close()

    return run


def take_snapshot(mountpoint: Path, folder: Path) -> None:
    """Boot a guest and leave its memory, its state and its overlay in `folder`."""
    overlay = create_overlay(mountpoint / DISK, folder / "overlay.qcow2")
    guest = Guest(guest_kernel(), overlay, folder, "", MEMORY_MIB, folder / "memory")
    try:
        guest.wait_for(LOGIN, BOOT_WAIT_S)
        with guest.control() as qmp:
            qmp.save_state(folder / "state")
    finally:
        guest.close()


def resume(snapshot: Path) -> Guests:
    """Return a guest that goes on from a snapshot, its memory on the mount, until a login."""

    def run(mountpoint: Path, folder: Path) -> float:
        overlay = folder / "overlay.qcow2"
        shutil.copyfile(snapshot / "overlay.qcow2", overlay)
        begin_s = time.perf_counter()
        guest = Guest(
            guest_kernel(),
            overlay,
            folder,
            "",
            MEMORY_MIB,
            mountpoint / MEMORY,
            ["-incoming", "defer"],
            is_memory_shared=False,
        )
        try:
            with guest.control() as qmp:
                qmp.resume_state(snapshot / "state")
            guest.say("root\n")
            guest.wait_for(PASSWORD, BOOT_WAIT_S)
            return time.perf_counter() - begin_s
        finally:
            guest.close()

    return run


class Host:
    """One host: where it mounts, and how; each mount has an empty cache."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._config = folder / "cachefs.toml"

    @contextmanager
    def mounted(self, *, learns: bool, options: str = "") -> Iterator[Path]:
        """Mount the store; `learns`: profiles are taken from the store and written there."""
        shutil.rmtree(self._folder / "cache", ignore_errors=True)
        mountpoint = self._folder / "mount"
        mountpoint.mkdir(exist_ok=True)
        self._config.write_text(f"[prefetch]\nshare_profiles = {json.dumps(learns)}\n")
        places = ["--store", STORE, "--cache-dir", str(self._folder / "cache")]
        more = ["-o", options] if options else []
        mounts.run_cachefs("mount", "--config", str(self._config), *places, *more, str(mountpoint))
        try:
            yield mountpoint
        finally:
            mounts.run_cachefs("umount", str(mountpoint))

    def start(self, guests: Guests, *, learns: bool, options: str = "") -> Start:
        """Run a guest on an empty cache."""
        work = Path(tempfile.mkdtemp(dir=self._folder))
        with self.mounted(learns=learns, options=options) as mountpoint:
            seconds = guests(mountpoint, work)
            time.sleep(JUDGED_S)
            metrics = mounts.status(mountpoint)["daemon"]["metrics"]
        shutil.rmtree(work)
        return Start(
            seconds,
            metrics["read_wait_us"] / 1e6,
            metrics["stalled_us"] / 1e6,
            metrics["l3_requests"],
            metrics["l3_frame_bytes"],
            metrics["ahead_wasted_bytes"],
        )


def learn(host: Host, guests: Guests, name: str) -> Start:
    """Start with no profile there, and wait until there is one of it."""
    objects = open_store(STORE).objects
    objects.delete(profile_key(name))
    found = host.start(guests, learns=True)
    end_s = time.monotonic() + PROFILE_WAIT_S
    while not any(info.key == profile_key(name) for info in objects.list("profiles/")):
        if time.monotonic() > end_s:
            raise RuntimeError(f"no profile of {name} in the store")
        time.sleep(0.1)
    from_bytes(objects.get(profile_key(name))[0])
    return found


class Results:
    """The table, a row a start."""

    def __init__(self) -> None:
        self.table = Table(
            "Starts from S3 with 30 ms and 100 MB/s, each with an empty cache",
            [
                "",
                "seconds",
                "reads waited, s",
                "less",
                "stalled, s",
                "less",
                "requests",
                "fetched",
                "of what was read",
            ],
        )

    def add(self, name: str, start: Start, without: Start | None = None) -> None:
        """Add a start; `without`: the same one without a profile."""
        self.table.add(
            name,
            f"{start.seconds:.1f}",
            f"{start.wait_s:.2f}",
            f"{without.wait_s / start.wait_s:.1f} x" if without else "",
            f"{start.stalled_s:.2f}",
            f"{without.stalled_s / start.stalled_s:.1f} x" if without else "",
            f"{start.requests}",
            size(start.fetched_bytes),
            f"{_share_of_need(start, without):.2f}",
        )
        for note in self._verdicts(name, start, without):
            self.table.notes.append(note)
        click.echo(f"{name}: {start}", err=True)

    @staticmethod
    def _verdicts(name: str, start: Start, without: Start | None) -> Iterator[str]:
        if without is None:
            return
        for what, less in (
            ("wait", without.wait_s / start.wait_s),
            ("stall", without.stalled_s / start.stalled_s),
        ):
            verdict = "aim reached" if less >= AIM else "reached" if less >= LEAST else "MISSED"
            yield f"{name}: {less:.1f} times less {what}; {LEAST} wanted, aim {AIM}: {verdict}."
        ratio = _share_of_need(start, without)
        if ratio > MOST_BYTES:
            yield f"{name}: {ratio:.2f} of the bytes that were read; {MOST_BYTES} wanted: MISSED."


def _share_of_need(start: Start, without: Start | None) -> float:
    """Return the bytes fetched, gaps included, by those that the start without a profile read."""
    need = without or start
    return start.fetched_bytes / (need.fetched_bytes - need.unread_bytes)


def _measure_boot(host: Host, results: Results) -> None:
    boot = boot_until(LOGIN)
    results.add(
        "boot, fetching nothing ahead", host.start(boot, learns=False, options="noprefetch")
    )
    without = learn(host, boot, DISK)
    results.add("boot, no profile", without)
    results.add("boot, profile known", host.start(boot, learns=True), without)


def _measure_check(host: Host, results: Results) -> None:
    learn(host, boot_until(LOGIN), DISK)
    check = boot_until(MARKER, "cachefs.check")
    without = host.start(check, learns=False)
    results.add("every file checked, no profile", without)
    results.add("every file checked, profile of a boot", host.start(check, learns=True), without)


def _measure_next(host: Host, results: Results, upgraded: Path) -> None:
    boot = boot_until(LOGIN)
    objects = open_store(STORE).objects
    learn(host, boot, DISK)  # the profile of one boot of the released version
    mounts.import_image(STORE, upgraded, DISK)
    kept = objects.get(profile_key(DISK))[0]
    without = host.start(boot, learns=False)
    results.add("next version, no profile", without)
    if objects.get(profile_key(DISK))[0] != kept:
        raise RuntimeError("the profile is not that of the version before")
    results.add("next version, profile of the one before", host.start(boot, learns=True), without)


def measure(host: Host, work: Path, parts: Collection[str]) -> Table:
    """Run all starts of these parts, in the order of PARTS."""
    results = Results()
    released, upgraded = debian_images()
    mounts.run_cachefs("init", STORE)
    mounts.import_image(STORE, released, DISK)
    if "boot" in parts:
        _measure_boot(host, results)
    if "check" in parts:
        _measure_check(host, results)
    if "resume" in parts:
        _measure_resume(host, work, results)
    if "next" in parts:  # last: it replaces the image
        _measure_next(host, results, upgraded)
    return results.table


def _measure_resume(host: Host, work: Path, results: Results) -> None:
    snapshot = work / "snapshot"
    snapshot.mkdir()
    with host.mounted(learns=False) as mountpoint:
        take_snapshot(mountpoint, snapshot)
    mounts.import_image(STORE, snapshot / "memory", MEMORY)
    go_on = resume(snapshot)
    without = learn(host, go_on, MEMORY)
    results.add("resume and log in, no profile", without)
    results.add("resume and log in, profile known", host.start(go_on, learns=True), without)


@click.command()
@click.option("--delay-ms", default=30.0, show_default=True, help="What each answer waits for.")
@click.option("--rate-mb", default=100.0, show_default=True, help="MB/s of all answers together.")
@click.option(
    "--only", default=",".join(PARTS), show_default=True, help="Which starts, with commas."
)
@click.option("--markdown", type=click.Path(path_type=Path), help="Write the table here, too.")
def main(delay_ms: float, rate_mb: float, only: str, markdown: Path | None) -> None:
    """Measure how guests start from S3."""
    parts = set(only.split(","))
    if unknown := parts - set(PARTS):
        raise click.BadParameter(f"there are {', '.join(PARTS)}; no {', '.join(unknown)}")
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="boot-")))
        for name in ("server", "host"):
            (work / name).mkdir()
        server = stack.enter_context(seaweedfs(work / "server"))
        proxy = stack.enter_context(closing(HttpProxy(server.address)))
        proxy.script.play_always(Fault(delay_s=delay_ms / 1000))
        proxy.bytes_per_s = rate_mb * 1e6
        os.environ.update(server.environment())
        os.environ["CACHEFS_S3_ENDPOINT"] = proxy.endpoint
        os.environ["CACHEFS_CATALOG_DIR"] = str(work / "catalogs")
        table = measure(Host(work / "host"), work, parts)
    publish([table], markdown)


if __name__ == "__main__":
    main()
