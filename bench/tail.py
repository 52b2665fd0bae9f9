"""The tail: latencies of hits at a fixed rate while something else goes on.

Small random reads of an image that is all in L1, a fixed number a second, as a guest that is not
in a hurry makes them: undisturbed; while another image is read cold; while the daemon is stopped
for five seconds; while it is killed. With `--s3` undisturbed and while another image is read cold
from S3 on loopback. Run it as `make bench-tail`.
"""

import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import click

from bench import files, fio, mounts
from bench.fio import Result
from bench.table import Table, publish
from tests.images.disks import MIB
from tests.s3.servers import seaweedfs

TARGET = 2.0
"""Of the undisturbed p99 and p99.9."""

TARGET_S3 = 3.0
"""Of the undisturbed p99, while a stream comes from S3."""

RATE = 2000
"""Reads a second."""

# Synchronous, so that fio's latency is all of the read, not only what follows its submission.
READS = fio.Workload("4 KiB random", "randread", 4096, 1, engine="psync")

STOPPED_S = 5.0


def undisturbed(mountpoint: Path, runtime_s: float) -> None:
    """Do nothing meanwhile."""


def cold_stream(mountpoint: Path, runtime_s: float) -> None:
    """Read another image, which is not in L1, in sequence."""
    end_s = time.monotonic() + runtime_s
    with (mountpoint / "cold").open("rb", buffering=0) as file:
        while time.monotonic() < end_s and file.read(MIB):
            pass


def stopped_daemon(mountpoint: Path, runtime_s: float) -> None:
    """Stop the daemon for some seconds."""
    pid = mounts.status(mountpoint)["daemon"]["pid"]
    os.kill(pid, signal.SIGSTOP)
    time.sleep(min(STOPPED_S, runtime_s * 0.8))
    os.kill(pid, signal.SIGCONT)


def killed_daemon(mountpoint: Path, _: float) -> None:
    """Kill the daemon; the next one starts meanwhile."""
    os.kill(mounts.status(mountpoint)["daemon"]["pid"], signal.SIGKILL)


UNDISTURBED = "undisturbed"
COLD_STREAM = "a cold stream runs"
DISTURBANCES: dict[str, Callable[[Path, float], None]] = {
    UNDISTURBED: undisturbed,
    COLD_STREAM: cold_stream,
    "the daemon is stopped for 5 s": stopped_daemon,
    "the daemon is killed": killed_daemon,
}


def measure(mountpoint: Path, disturb: Callable[[Path, float], None], runtime_s: float) -> Result:
    """Read at the fixed rate, and disturb after half a second."""
    disturber = threading.Timer(0.5, disturb, (mountpoint, runtime_s - 0.5))
    disturber.start()
    try:
        return fio.measure(mountpoint / "hot", READS, runtime_s, 0, f"--rate_iops={RATE}")
    finally:
        disturber.join()


def make_cold(store: str, mountpoint: Path, work: Path, round_number: int, size_mib: int) -> None:
    """Import another image that nobody has read."""
    image = work / "cold.img"
    with image.open("wb") as file:
        file.write(bytes(round_number + 1))
        for _ in range(size_mib):
            file.write(os.urandom(MIB // 2) + bytes(range(256)) * (MIB // 512))
    mounts.import_image(store, image, "cold")
    wanted = image.stat().st_size
    cold = mountpoint / "cold"
    while not cold.exists() or cold.stat().st_size != wanted:
        time.sleep(0.1)
    os.sync()
    time.sleep(3)  # the next listing has come: the new version is shown


@click.command()
@click.option("--size-mib", default=256, show_default=True, help="Size of the hot image.")
@click.option("--cold-mib", default=2048, show_default=True, help="Size of the cold one.")
@click.option("--runtime", "runtime_s", default=8.0, show_default=True, help="Seconds per point.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--mount-options", default="", help="Options of the cachefs mount.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Write the table here, too.")
@click.option("--s3", "is_on_s3", is_flag=True, help="The store is SeaweedFS on loopback.")
def main(
    size_mib: int,
    cold_mib: int,
    runtime_s: float,
    rounds: int,
    mount_options: str,
    markdown: Path | None,
    is_on_s3: bool,
) -> None:
    """Measure the latency of hits while something else goes on."""
    names = [UNDISTURBED, COLD_STREAM] if is_on_s3 else list(DISTURBANCES)
    results: dict[str, list[Result]] = {name: [] for name in names}
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tail-")))
        store = str(work / "store")
        if is_on_s3:
            store = "s3://images/tail"
            (work / "server").mkdir()
            server = stack.enter_context(seaweedfs(work / "server"))
            os.environ.update(server.environment())
            os.environ["CACHEFS_CATALOG_DIR"] = str(work / "catalogs")
        hot = files.build_random_filled_image(work / "hot.img", size_mib * MIB)
        mounts.run_cachefs("init", store)
        mounts.import_image(store, hot, "hot")
        mountpoint = stack.enter_context(mounts.mounted_store(store, work, mount_options))
        mounts.warm(mountpoint / "hot")
        for round_number in range(rounds):
            make_cold(store, mountpoint, work, round_number, cold_mib)
            for name in names:
                results[name].append(measure(mountpoint, DISTURBANCES[name], runtime_s))
                time.sleep(1)
        restarts = mounts.status(mountpoint)["daemon"]["restarts"]
    subprocess.run(["sync"], check=True)
    table = Table(
        f"4 KiB hits at {RATE:,} reads a second" + (", S3 on loopback" if is_on_s3 else ""),
        ["", "p50 us", "p99 us", "p99.9 us", "longest us", "p99, of undisturbed", "p99.9"],
    )
    calm = results[UNDISTURBED]
    for name, rounds_of in results.items():
        result = fio.median_result(rounds_of)
        pairs = list(zip(rounds_of, calm, strict=True))
        p99 = median(mine.p99_us / other.p99_us for mine, other in pairs)
        p999 = median(mine.p999_us / other.p999_us for mine, other in pairs)
        table.add(
            name,
            f"{result.p50_us:.0f}",
            f"{result.p99_us:.0f}",
            f"{result.p999_us:.0f}",
            f"{result.longest_us:,.0f}",
            f"{p99:.2f}",
            f"{p999:.2f}",
        )
        table.notes.append(f"{name}: {_verdict(p99, p999, is_on_s3=is_on_s3)}")
    table.notes.append(f"daemons that were started anew meanwhile: {restarts}")
    publish([table], markdown)


def _verdict(p99: float, p999: float, *, is_on_s3: bool) -> str:
    if is_on_s3:
        said = "reached" if p99 <= TARGET_S3 else "MISSED"
        return f"p99 at most {TARGET_S3:g} of undisturbed {said}"
    said = "reached" if max(p99, p999) <= TARGET else "MISSED"
    return f"at most {TARGET:g} of undisturbed {said}"


if __name__ == "__main__":
    main()
