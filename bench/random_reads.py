"""Random cold 4 KiB reads from S3, beside desync: `make bench-random-reads`.

The same image in the same SeaweedFS: for cachefs imported, for desync (its index and chunks made by
`desync make`) mounted with `desync mount-index`. Both mounts are new for each round, both without
any cache: cachefs with an empty cache folder, desync without `-c`. Reads with O_DIRECT, each in
another 64 KiB of the image, at places that hold data, one at a time and several at once; the mounts
take turns. Then the same through a proxy that makes S3 farther.
"""

import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import click

from bench import clock, files, mounts
from bench.far_s3 import FarS3, far_s3
from bench.table import Table, publish
from cachefs.units import KIB, MIB
from tests.s3.servers import ACCESS_KEY, SECRET_KEY, S3Server, seaweedfs

STORE = "s3://images/random"
DESYNC_STORE = "images/desync"
READ_BYTES = 4 * KIB
APART_BYTES = 64 * KIB
MOST_GETS, LEAST_RATIO = 1.0, 3.0
COUNTED_READS = 200
WARM_READS = 32
MOUNT_WAIT_S = 30.0
NO_DESYNC = (
    "there is no desync: install it (Debian unstable has the package `desync`; it runs on Debian 12"
    " as `dpkg -x` unpacks it), or say where it is with --desync"
)


@dataclass(frozen=True)
class Options:
    """What to measure: reads a mount and round, rounds, reads at a time, milliseconds added."""

    reads: int
    rounds: int
    depths: tuple[int, ...]
    far_ms: tuple[int, ...]


@dataclass
class Measured:
    """What reads through one mount took, in microseconds, and the reads a second by round."""

    times_us: list[float] = field(default_factory=list)
    per_s: list[float] = field(default_factory=list)

    def add(self, timed: clock.TimedReads) -> None:
        """Add a round."""
        self.times_us += timed.times_us
        self.per_s.append(len(timed.times_us) / timed.wall_s)

    def percentile_ms(self, share: float) -> float:
        """Return a percentile."""
        ordered = sorted(self.times_us)
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))] / 1000


class Desync:
    """desync: makes an index and chunks of an image in S3, and mounts it."""

    def __init__(self, program: str, folder: Path) -> None:
        self._program = program
        self._folder = folder
        self._index = folder / "image.caibx"
        self._environment = {
            **os.environ,
            "S3_ACCESS_KEY": ACCESS_KEY,
            "S3_SECRET_KEY": SECRET_KEY,
            "S3_REGION": "us-east-1",
            "HOME": str(folder),
        }

    def make(self, image: Path, endpoint: str) -> None:
        """Store the chunks of an image, and make its index."""
        command = [self._program, "make", *self._store(endpoint), str(self._index), str(image)]
        done = subprocess.run(
            command, env=self._environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")

    @contextmanager
    def mounted(self, endpoint: str) -> Iterator[Path]:
        """Mount the index; yields the path of the image."""
        mountpoint = self._folder / "mount"
        mountpoint.mkdir(exist_ok=True)
        command = [self._program, "mount-index", *self._store(endpoint)]
        process = subprocess.Popen(
            [*command, str(self._index), str(mountpoint)], env=self._environment
        )
        try:
            end_s = time.monotonic() + MOUNT_WAIT_S
            while not mountpoint.is_mount():
                if process.poll() is not None or time.monotonic() > end_s:
                    raise RuntimeError("desync does not mount")
                time.sleep(0.02)
            (path,) = mountpoint.iterdir()
            yield path
        finally:
            subprocess.run(["fusermount3", "-u", str(mountpoint)], check=False)
            try:
                process.wait(MOUNT_WAIT_S)
            except subprocess.TimeoutExpired:
                process.kill()

    @staticmethod
    def _store(endpoint: str) -> list[str]:
        return ["-s", f"s3+{endpoint}/{DESYNC_STORE}?lookup=path"]


@contextmanager
def cachefs_mounted(work: Path, endpoint: str) -> Iterator[Path]:
    """Mount cachefs with an empty cache folder; yields the path of the image."""
    shutil.rmtree(work / "cache", ignore_errors=True)
    os.environ["CACHEFS_S3_ENDPOINT"] = endpoint
    with mounts.mounted_store(STORE, work) as mountpoint:
        yield mountpoint / "image"


def places(image: Path, count: int) -> list[int]:
    """Return places of blocks that hold data, each in another 64 KiB."""
    chance = random.Random(1)
    apart = list(range(0, image.stat().st_size - APART_BYTES + 1, APART_BYTES))
    chance.shuffle(apart)
    found = []
    with image.open("rb") as file:
        for at in apart:
            offset = at + READ_BYTES * chance.randrange(APART_BYTES // READ_BYTES)
            file.seek(offset)
            if any(file.read(READ_BYTES)):
                found.append(offset)
            if len(found) == count:
                return found
    raise click.UsageError("the image holds less data than so many reads want")


def read(path: Path, offsets: list[int], depth: int) -> clock.TimedReads:
    """Open and read a little untimed (tables, connections), then time the others."""
    clock.time_direct_reads_at_depth(path, offsets[:WARM_READS], READ_BYTES, depth)
    return clock.time_direct_reads_at_depth(path, offsets[WARM_READS:], READ_BYTES, depth)


def count_gets(path: Path, far: FarS3, offsets: list[int], depth: int) -> float:
    """Return the requests a read that reach S3, of any kind."""
    clock.time_direct_reads_at_depth(path, offsets[:WARM_READS], READ_BYTES, depth)
    before = far.requests()
    counted = offsets[WARM_READS:][:COUNTED_READS]
    clock.time_direct_reads_at_depth(path, counted, READ_BYTES, depth)
    return (far.requests() - before) / len(counted)


def compare(
    desync: Desync, work: Path, endpoint: str, offsets: list[int], rounds: int, depth: int
) -> dict[str, Measured]:
    """Measure both in turns; every other round goes backwards."""
    measured = {"cachefs": Measured(), "desync": Measured()}
    for number in range(rounds):
        for name in list(measured)[:: -1 if number % 2 else 1]:
            subject = (
                cachefs_mounted(work, endpoint) if name == "cachefs" else desync.mounted(endpoint)
            )
            with subject as path:
                measured[name].add(read(path, offsets, depth))
    return measured


def table_of(case: str, measured: dict[str, Measured], gets: dict[str, float]) -> Table:
    """Return a table with the verdicts."""
    table = Table(
        f"Random cold 4 KiB reads from S3, {case}",
        ["", "reads/s", "median ms", "p99 ms", "requests a read", "of desync", "reads"],
    )
    ratios = [
        ours / theirs
        for ours, theirs in zip(measured["cachefs"].per_s, measured["desync"].per_s, strict=True)
    ]
    for name, found in measured.items():
        table.add(
            name,
            f"{median(found.per_s):.0f}",
            f"{found.percentile_ms(0.5):.2f}",
            f"{found.percentile_ms(0.99):.2f}",
            f"{gets[name]:.2f}",
            f"{median(ratios):.2f}" if name == "cachefs" else "1.00",
            str(len(found.times_us)),
        )
    for what, is_reached, value in (
        (f"at most {MOST_GETS:.0f} GET a read", gets["cachefs"] <= MOST_GETS, gets["cachefs"]),
        (f"{LEAST_RATIO:.0f} times desync", median(ratios) >= LEAST_RATIO, median(ratios)),
    ):
        verdict = "reached" if is_reached else "MISSED"
        table.notes.append(f"{what}: {verdict} ({value:.2f})")
    table.notes.append(f"Of desync by round: {', '.join(f'{ratio:.2f}' for ratio in ratios)}.")
    return table


def measure(
    server: S3Server, desync: Desync, work: Path, image: Path, options: Options
) -> list[Table]:
    """Store the image for both, count requests, and measure near and far."""
    mounts.run_cachefs("init", STORE)
    mounts.import_image(STORE, image, "image")
    desync.make(image, server.endpoint)
    offsets = places(image, options.reads + WARM_READS)
    tables = []
    with far_s3(server.address) as far:
        for depth in options.depths:
            with cachefs_mounted(work, far.endpoint) as path:
                gets = {"cachefs": count_gets(path, far, offsets, depth)}
            with desync.mounted(far.endpoint) as path:
                gets["desync"] = count_gets(path, far, offsets, depth)
            for far_ms in options.far_ms:
                far.set_delay(far_ms / 1000)
                endpoint = far.endpoint if far_ms else server.endpoint
                timed = offsets[: WARM_READS + options.reads // (2 if far_ms else 1)]
                measured = compare(desync, work, endpoint, timed, options.rounds, depth)
                at_once = f"{depth} at a time" if depth > 1 else "one at a time"
                added = f"{far_ms} ms added to S3" if far_ms else "S3 on loopback"
                tables.append(table_of(f"{at_once}, {added}", measured, gets))
            far.set_delay(0)
    return tables


@click.command()
@click.option("--desync", "program", help="The program; else as PATH has it.")
@click.option("--size-mib", default=256, show_default=True, help="Size of the image.")
@click.option("--reads", default=400, show_default=True, help="Reads a mount and round.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--far-ms", multiple=True, type=int, default=(0, 10, 30), help="Added to S3.")
@click.option("--depth", "depths", multiple=True, type=int, default=(1, 16), help="At a time.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Write the tables here, too.")
def main(
    program: str | None,
    size_mib: int,
    reads: int,
    rounds: int,
    far_ms: tuple[int, ...],
    depths: tuple[int, ...],
    markdown: Path | None,
) -> None:
    """Measure random cold reads beside desync."""
    options = Options(reads, rounds, depths, far_ms)
    found = shutil.which(program or "desync")
    if found is None:
        raise click.ClickException(NO_DESYNC)
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="random-")))
        image = files.build_dense_image(work / "image.img", size_mib * MIB)
        for name in ("server", "desync"):
            (work / name).mkdir()
        server = stack.enter_context(seaweedfs(work / "server"))
        os.environ.update(server.environment())
        os.environ["CACHEFS_CATALOG_DIR"] = str(work / "catalogs")
        desync = Desync(str(Path(found).resolve()), work / "desync")
        tables = measure(server, desync, work, image, options)
    publish(tables, markdown)


if __name__ == "__main__":
    main()
