"""Hits whose bytes are on the disk: nothing of L1 is in the page cache.

Beside them fio on the segment file itself, at the same queue depth: the least that anybody can do
who has the bytes on this disk. Each block is read at most once before the next round: what a read
of the lane leaves in the page cache must not answer the next one. Run it as `make bench-disk`.
"""

import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import click

from bench import files, fio, mounts
from bench.fio import Result, Workload
from bench.hot import ratio_by_rounds
from bench.table import Table, publish, rate
from tests.images.disks import MIB

TARGET = 0.9
WORKLOADS = (
    Workload("4 KiB random QD1", "randread", 4096, 1),
    Workload("4 KiB random QD32", "randread", 4096, 32),
    Workload("64 KiB random QD32", "randread", 65536, 32),
    Workload("128 KiB random QD16", "randread", 128 * 1024, 16),
)


@click.command()
@click.option("--size-mib", default=2048, show_default=True, help="Size of the image.")
@click.option("--runtime", "runtime_s", default=1.0, show_default=True, help="Seconds per point.")
@click.option("--rounds", default=9, show_default=True)
@click.option("--mount-options", default="", help="Options of the cachefs mount.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Write the tables here, too.")
def main(
    size_mib: int, runtime_s: float, rounds: int, mount_options: str, markdown: Path | None
) -> None:
    """Measure hits with a cold page cache beside fio on the segment file."""
    tables = []
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="disk-", dir=".")))
        store = work / "store"
        image = files.build_random_filled_image(work / "disk.img", size_mib * MIB)
        mounts.run_cachefs("init", str(store))
        mounts.import_image(store, image, "image")
        image.unlink()
        mountpoint = stack.enter_context(mounts.mounted_store(store, work, mount_options))
        mounts.warm(mountpoint / "image")
        (segment,) = (work / "cache" / "segments").iterdir()
        for workload in WORKLOADS:
            served: list[Result] = []
            alone: list[Result] = []
            for _ in range(rounds):
                for path, results in ((mountpoint / "image", served), (segment, alone)):
                    files.drop_from_page_cache(work)
                    once = ("--norandommap=0", f"--io_size={size_mib}M")
                    results.append(fio.measure(path, workload, runtime_s, 0, *once))
            table = Table(
                f"{workload.name}, nothing in the page cache",
                ["", "IOPS", "speed", "p50 us", "p99 us", "of the segment file"],
            )
            ratio = ratio_by_rounds(served, [alone]) or 0.0
            for name, results, text in (
                ("cachefs", served, f"{ratio:.2f}"),
                ("fio on the segment file, O_DIRECT", alone, "1.00"),
            ):
                result = fio.median_result(results)
                table.add(
                    name,
                    f"{result.iops:,.0f}",
                    rate(result.bytes_per_s),
                    f"{median(each.p50_us for each in results):.0f}",
                    f"{result.p99_us:.0f}",
                    text,
                )
            verdict = "reached" if ratio >= TARGET else "MISSED"
            pairs = zip(served, alone, strict=True)
            spread = sorted(mine.iops / other.iops for mine, other in pairs)
            table.notes.append(
                f"target {TARGET} {verdict} ({ratio:.2f}, {spread[0]:.2f} to {spread[-1]:.2f})"
            )
            tables.append(table)
        lane = mounts.status(mountpoint)["lane"]
        reads = lane["reads"]
        tables[-1].notes.append(
            f"of {reads['hits']:,} hits {reads['disk_reads']:,} waited for the disk, "
            f"{lane['disk_direct']:,} of them past the page cache; "
            f"{reads['disk_busy']:,} were passed on because too many did"
        )
    publish(tables, markdown)


if __name__ == "__main__":
    main()
