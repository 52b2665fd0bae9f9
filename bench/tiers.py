"""How long one read takes by the tier that answers it, L1, L2, or the store: `make bench-tiers`.

Reads of one chunk of 64 KiB at random places, one after another, past the kernel's page cache,
through a mount. L2 is a Redis and a Memcached on loopback, the store a local folder in the page
cache. Each read of L2 and of the store is a chunk's first: for each round the mount is new, and its
L1 empty. The tiers take turns; each figure is over all rounds.

Beside it what an L2 costs a cold sequential read of the whole image, with nothing of it there yet.

Then a read of one chunk from S3, near and far, beside what S3 itself takes (s3_tier.py).
"""

import random
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import click

from bench import clock, files, mounts, s3_tier
from bench.table import Table, publish, rate
from tests.images.disks import MIB
from tests.l2_servers import memcached_server, redis_server

READ_BYTES = 64 * 1024
TARGETS_US = {"L1": 200.0, "L2 in Redis": 3000.0}
"""At the 99th percentile."""


@dataclass
class Measured:
    """What was read from where."""

    times_us: list[float] = field(default_factory=list)
    l2_chunks: int = 0
    l3_chunks: int = 0

    def percentile(self, share: float) -> float:
        """Return a percentile in microseconds."""
        ordered = sorted(self.times_us)
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


@contextmanager
def fresh_mount(store: Path, folder: Path, l2_url: str) -> Iterator[Path]:
    """Mount with an empty L1, one fetcher, and the L2 if there is one."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        options = "fetchers=1" + (f",l2={l2_url},l2_timeout=1" if l2_url else "")
        with mounts.mounted_store(store, Path(name), options) as mountpoint:
            yield mountpoint


def measure(mountpoint: Path, offsets: list[int], measured: Measured) -> None:
    """Time reads, and note which tier has answered them."""
    before = mounts.status(mountpoint)["daemon"]["metrics"]
    measured.times_us += clock.time_direct_reads(mountpoint / "image", offsets, READ_BYTES)
    after = mounts.status(mountpoint)["daemon"]["metrics"]
    measured.l2_chunks += after["l2_chunks"] - before["l2_chunks"]
    measured.l3_chunks += after["l3_chunks"] - before["l3_chunks"]


def fill(store: Path, folder: Path, l2_url: str, offsets: list[int]) -> None:
    """Let another host read everything that will be asked for."""
    with fresh_mount(store, folder, l2_url) as mountpoint:
        clock.time_direct_reads(mountpoint / "image", offsets, READ_BYTES)
        mounts.wait_until_idle(mountpoint)


def offsets_of(size_bytes: int, count: int) -> list[int]:
    """Return places of different chunks, those of no other round."""
    return random.Random(1).sample(range(0, size_bytes - READ_BYTES + 1, READ_BYTES), count)


def measure_near(work: Path, image: Path, reads: int, rounds: int) -> list[Table]:
    """Measure L1, L2 and a local store."""
    size_mib = image.stat().st_size // MIB
    with ExitStack() as stack:
        store = work / "store"
        mounts.run_cachefs("init", str(store))
        mounts.import_image(store, image, "image")
        offsets = offsets_of(size_mib * MIB, reads)
        redis = stack.enter_context(
            redis_server(work / "redis", "--maxmemory", f"{2 * size_mib}mb")
        )
        memcached = stack.enter_context(
            memcached_server(work / "memcached", "-m", str(2 * size_mib))
        )
        urls = {
            "L2 in Redis": f"redis://127.0.0.1:{redis.port}",
            "L2 in Memcached": f"memcached://127.0.0.1:{memcached.port}",
            "L3, a local store": "",
        }
        for url in filter(None, urls.values()):
            fill(store, work, url, offsets)
        files.load_into_page_cache(store)
        measured = {name: Measured() for name in ["L1", *urls]}
        for _ in range(rounds):
            for name, url in urls.items():
                with fresh_mount(store, work, url) as mountpoint:
                    clock.time_direct_reads(mountpoint / "image", offsets[:20], READ_BYTES)
                    measure(mountpoint, offsets[20:], measured[name])
                    if not url:
                        measure(mountpoint, offsets[20:], measured["L1"])
        cold = {name: list[float]() for name in ("no L2", "an empty Redis")}
        for _ in range(rounds):
            for name, times_s in cold.items():
                url = "" if name == "no L2" else urls["L2 in Redis"]
                if name == "an empty Redis":
                    with redis.client() as client:
                        client.flushall()
                with fresh_mount(store, work, url) as mountpoint:
                    times_s.append(clock.time_read(mountpoint / "image", MIB))
    return [table_of(measured), cold_table(cold, size_mib * MIB)]


@click.command()
@click.option("--size-mib", default=256, show_default=True, help="Size of the image.")
@click.option("--reads", default=1000, show_default=True, help="Reads a tier and round.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--s3-reads", default=320, show_default=True, help="Of S3; 0: leave it out.")
@click.option("--only-s3", is_flag=True, help="Leave everything else out.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Write the table here, too.")
def main(
    size_mib: int, reads: int, rounds: int, s3_reads: int, only_s3: bool, markdown: Path | None
) -> None:
    """Measure a read of one chunk from each tier."""
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tiers-")))
        image = files.build_random_filled_image(work / "image.img", size_mib * MIB)
        tables = [] if only_s3 else measure_near(work, image, reads, rounds)
        if s3_reads:
            tables.append(s3_tier.measure(work, image, s3_reads, rounds))
    publish(tables, markdown)


def table_of(measured: dict[str, Measured]) -> Table:
    """Return the table, with where the chunks really came from."""
    table = Table(
        "A read of one chunk of 64 KiB, by the tier that has it",
        ["", "median us", "p99 us", "chunks from L2", "from the store", "reads"],
    )
    for name, found in measured.items():
        table.add(
            name,
            f"{found.percentile(0.5):.0f}",
            f"{found.percentile(0.99):.0f}",
            str(found.l2_chunks),
            str(found.l3_chunks),
            str(len(found.times_us)),
        )
    for name, target_us in TARGETS_US.items():
        p99_us = measured[name].percentile(0.99)
        verdict = "reached" if p99_us <= target_us else "MISSED"
        table.notes.append(f"{name}: p99 wanted {target_us:.0f} us, {verdict} ({p99_us:.0f})")
    return table


def cold_table(cold: dict[str, list[float]], size_bytes: int) -> Table:
    """Return the table of sequential reads."""
    table = Table(
        f"A cold sequential read of {size_bytes // MIB} MiB, one fetcher",
        ["", "seconds", "speed", "of that without L2"],
    )
    bare_s = median(cold["no L2"])
    for name, times_s in cold.items():
        found_s = median(times_s)
        table.add(name, f"{found_s:.2f}", rate(size_bytes / found_s), f"{bare_s / found_s:.2f}")
    return table


if __name__ == "__main__":
    main()
