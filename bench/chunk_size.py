"""Chunk sizes: what each costs and gives, on two versions of a real Debian image.

The second version is the first after all security updates and with some more packages, upgraded in
place. Run it as `make bench-chunk-size`.
"""

import random
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median, quantiles

import click

from bench import clock, files, fio, mounts
from bench.fio import Workload
from bench.table import Table, publish, rate, size
from bench.turns import Measured, measure_in_turns
from tests.images.debian import debian_images

CHUNK_SIZES = ("16KiB", "64KiB", "256KiB", "1MiB")
HITS = (fio.RANDOM_4K_QD1, fio.RANDOM_128K_QD16, fio.SEQUENTIAL_1M)
COLD_READS = 300
COLD_READ_BYTES = 4096


def import_both(stores: Sequence[Path], chunk_sizes: Sequence[str]) -> Table:
    """Import both versions with each chunk size; returns the table of what that took."""
    table = Table(
        "Import and deduplication",
        ["chunk size", "speed", "stored, first", "stored, second", "second of first", "manifests"],
    )
    first, second = debian_images()
    files.load_into_page_cache(first, second)
    for store, chunk_size in zip(stores, chunk_sizes, strict=True):
        mounts.run_cachefs("init", str(store))
        begin_s = time.perf_counter()
        mounts.import_image(store, first, "v1", chunk_size)
        speed = first.stat().st_size / (time.perf_counter() - begin_s)
        first_bytes = files.stored_bytes(store / "packs")
        mounts.import_image(store, second, "v2", chunk_size)
        second_bytes = files.stored_bytes(store / "packs") - first_bytes
        table.add(
            chunk_size,
            rate(speed),
            size(first_bytes),
            size(second_bytes),
            f"{second_bytes / first_bytes:.2f}",
            size(files.stored_bytes(store / "manifests")),
        )
    return table


def choose_cold_offsets(source: Path) -> list[int]:
    """Return random places of an image whose 4 KiB are not zeros: zeros need no store."""
    size_bytes = source.stat().st_size
    chance = random.Random(1)
    chosen: list[int] = []
    with source.open("rb") as file:
        while len(chosen) < COLD_READS:
            offset = chance.randrange(size_bytes // COLD_READ_BYTES) * COLD_READ_BYTES
            file.seek(offset)
            if any(file.read(COLD_READ_BYTES)):
                chosen.append(offset)
    return chosen


def tabulate_reads(
    hits: Measured[str], cold: dict[str, list[float]], workloads: Sequence[Workload]
) -> Table:
    """Return the table of hits and of cold reads."""
    heads = ["chunk size", *(f"hit, {workload.name}" for workload in workloads)]
    table = Table("Reads", [*heads, "cold 4 KiB, p50 us", "cold 4 KiB, p99 us"])
    for chunk_size, times_us in cold.items():
        p50_us, p99_us = (quantiles(times_us, n=100)[place] for place in (49, 98))
        speeds = [
            rate(median(result.bytes_per_s for result in hits[chunk_size, workload]))
            for workload in workloads
        ]
        table.add(chunk_size, *speeds, f"{p50_us:.0f}", f"{p99_us:.0f}")
    return table


@click.command()
@click.option("--chunk-sizes", default=",".join(CHUNK_SIZES), show_default=True)
@click.option("--runtime", "runtime_s", default=2.0, show_default=True, help="Seconds per point.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--mount-options", default="", help="Options of the cachefs mounts.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Write the tables here, too.")
def main(
    chunk_sizes: str, runtime_s: float, rounds: int, mount_options: str, markdown: Path | None
) -> None:
    """Measure chunk sizes on two versions of a Debian image."""
    names = chunk_sizes.split(",")
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chunk-size-")))
        folders = {name: work / name for name in names}
        for folder in folders.values():
            folder.mkdir()
        imports = import_both([folder / "store" for folder in folders.values()], names)
        paths, cold = {}, {}
        offsets = choose_cold_offsets(debian_images()[1])
        for name, folder in folders.items():
            mount = mounts.mounted_store(folder / "store", folder, mount_options)
            paths[name] = stack.enter_context(mount) / "v2"
            cold[name] = clock.time_direct_reads(paths[name], offsets, COLD_READ_BYTES)
            mounts.warm(paths[name])
        hits = measure_in_turns(paths, HITS, runtime_s, rounds)
    publish([imports, tabulate_reads(hits, cold, HITS)], markdown)


if __name__ == "__main__":
    main()
