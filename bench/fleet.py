"""A fleet through the real read path: what stays in a small L1 while guests boot and work.

Recorded boots and workloads, several guests at a time, of two versions of one image, with and
without a backup that reads both: each read is made on a real mount with a small L1, in the order in
which they were recorded, one after another, past the kernel's page cache. A chunk that the daemon
has to fetch is a miss. Beside it the simulator, on the same reads. Run it as `make bench-fleet`.
"""

import mmap
import os
import random
import tempfile
from contextlib import ExitStack
from pathlib import Path

import click
from rich.progress import track

from bench import files, mounts
from bench.table import Table, publish
from bench.workloads import EXTENT_BYTES, IMAGE_BYTES, FleetReads, fleet, fleet_reads
from cachefs.simulate.accesses import Requests, accesses_of
from cachefs.simulate.grid import MIN, Run, parse_cache_size, run_one
from cachefs.units import KIB, MIB

CHUNK_BYTES = 64 * KIB
NAMES = ("image", "next")
MOST_READ_BYTES = MIB
TRACES = Path(__file__).parents[2] / "shared/traces"


def build_versions(folder: Path, reads: FleetReads) -> tuple[Path, Path]:
    """Make both versions: noise, of which the next one shares what is not changed."""
    image = files.build_noise(folder / NAMES[0], IMAGE_BYTES)
    following = folder / NAMES[1]
    chance = random.Random(2)
    with image.open("rb") as old, following.open("wb") as new:
        for is_changed in reads.changed:
            extent = old.read(EXTENT_BYTES)
            new.write(chance.randbytes(EXTENT_BYTES) if is_changed else extent)
    return image, following


def misses_through_mount(store: Path, reads: FleetReads, policy: str, quota_bytes: int) -> int:
    """Make all reads on a new mount with an empty L1; returns how many chunks were fetched."""
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fleet-")))
        options = f"noprefetch,quota={quota_bytes},eviction={policy}"
        mountpoint = stack.enter_context(mounts.mounted_store(store, work, options))
        fds = []
        for name in NAMES:
            fds.append(os.open(mountpoint / name, os.O_RDONLY | os.O_DIRECT))
            stack.callback(os.close, fds[-1])
        with mmap.mmap(-1, MOST_READ_BYTES) as buffer:  # aligned, as O_DIRECT wants it
            view = stack.enter_context(memoryview(buffer))
            rows = zip(reads.is_next, reads.offset.tolist(), reads.length.tolist(), strict=True)
            for is_next, offset, length in track(list(rows), description=policy):
                for at in range(offset, offset + length, MOST_READ_BYTES):
                    part = min(MOST_READ_BYTES, offset + length - at)
                    if os.preadv(fds[bool(is_next)], [view[:part]], at) != part:
                        raise RuntimeError(f"a short read at {at}")
            view.release()
        fetched: int = mounts.status(mountpoint)["daemon"]["metrics"]["l3_chunks"]
        return fetched


def measure(
    store: Path, reads: FleetReads, requests: Requests, policies: list[str], size: str
) -> Table:
    """Return a table of one fleet."""
    cache = parse_cache_size(size)
    accesses = accesses_of(requests, CHUNK_BYTES)
    quota_bytes = cache.slots(accesses) * CHUNK_BYTES
    found = {name: misses_through_mount(store, reads, name, quota_bytes) for name in policies}
    expected = {
        name: run_one(requests, Run(CHUNK_BYTES, cache, name)).outcome.misses
        for name in (*policies, MIN)
    }
    table = Table(
        f"{requests.name}, L1 of {size} ({quota_bytes // MIB} MiB), {len(accesses):,} accesses",
        ["policy", "hits, %", "simulated", "gap closed, %", "simulated"],
    )
    sides = (found, expected)
    for name in policies:
        hits = [f"{100 * (1 - misses[name] / len(accesses)):.1f}" for misses in sides]
        gaps = [
            f"{100 * (misses['lru'] - misses[name]) / (misses['lru'] - expected[MIN]):.1f}"
            for misses in sides
        ]
        table.add(name, *hits, *gaps)
    table.add("MIN", "", f"{100 * (1 - expected[MIN] / len(accesses)):.1f}", "", "100.0")
    return table


@click.command()
@click.option("--traces", type=click.Path(path_type=Path, exists=True), default=TRACES)
@click.option("--policies", default="lru,2q,s3fifo,ml", show_default=True)
@click.option("--size", default="10%", show_default=True, help="L1, of all distinct chunks.")
@click.option("--seed", default=0, show_default=True)
@click.option("--markdown", type=click.Path(path_type=Path), help="Write the tables here, too.")
def main(traces: Path, policies: str, size: str, seed: int, markdown: Path | None) -> None:
    """Measure the hits of a fleet of guests on a real mount."""
    tables = []
    for backup in (False, True):
        reads = fleet_reads(traces / "boots", seed, backup=backup)
        requests = fleet(traces / "boots", seed, backup=backup)
        with tempfile.TemporaryDirectory(prefix="fleet-") as folder:
            store = Path(folder) / "store"
            mounts.run_cachefs("init", str(store))
            for name, image in zip(NAMES, build_versions(Path(folder), reads), strict=True):
                mounts.import_image(store, image, name, str(CHUNK_BYTES))
                image.unlink()
            tables.append(measure(store, reads, requests, policies.split(","), size))
    publish(tables, markdown)


if __name__ == "__main__":
    main()
