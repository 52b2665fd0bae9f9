"""Cold reads: a whole image in sequence, from a local store, with an empty L1.

Beside it `zstd -d` of the same bytes on one core, the least work that anybody has with them:
cachefs also verifies, writes L1 and passes each byte through FUSE. Run it as `make bench-cold`.
"""

import mmap
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import click

from bench import clock, files, mounts
from bench.table import Table, publish, rate
from cachefs.config import Config
from tests.images.disks import MIB

# Of `zstd -d` on one core, times the cores that fetchers may use.
TARGET = 0.5
READ_BYTES = MIB

# The read leaves the image in the page cache twice: as L1's file and as the mounted one.
COPIES = 3


def touch_memory(size_bytes: int) -> None:
    """Make a virtual machine's host hand out memory before a measurement, not during it.

    `zstd -d` to nowhere takes no new memory. A read through the mount does, and where the host has
    taken free memory back, each page's first use costs several times what cachefs does with it.
    """
    free_bytes = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
    mmap.mmap(-1, min(size_bytes, free_bytes // 2), flags=flags).close()


def read_cold(
    store: Path,
    folder: Path,
    mount_options: str,
    prepare: Callable[[Path], None],
    image_bytes: int,
) -> float:
    """Mount with an empty cache folder and read the image; returns the seconds of the read."""
    shutil.rmtree(folder / "cache", ignore_errors=True)
    os.sync()  # what import and earlier rounds wrote is not this read's to write back
    with mounts.mounted_store(store, folder, mount_options) as mountpoint:
        prepare(store)
        touch_memory(COPIES * image_bytes)
        return clock.time_read(mountpoint / "image", READ_BYTES)


@click.command()
@click.option("--image", type=click.Path(path_type=Path, exists=True), help="Read this image.")
@click.option("--size-mib", default=768, show_default=True, help="Size of the image made else.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--fetchers", help="Fetcher processes.", type=int)
@click.option("--markdown", type=click.Path(path_type=Path), help="Write the table here, too.")
def main(
    image: Path | None,
    size_mib: int,
    rounds: int,
    fetchers: int | None,
    markdown: Path | None,
) -> None:
    """Measure cold sequential reads beside zstd -d."""
    mount_options = f"fetchers={fetchers}" if fetchers else ""
    fetcher_cores = min(fetchers or Config().fetch.fetcher_count(), os.cpu_count() or 1)
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cold-")))
        image = image or files.build_dense_image(work / "dense.img", size_mib * MIB)
        size_bytes = image.stat().st_size
        packed, store = work / "image.zst", work / "store"
        clock.time_program(["zstd", "-q", "-3", "-T0", image, "-o", packed])
        mounts.run_cachefs("init", str(store))
        mounts.import_image(store, image, "image")

        table = Table(
            f"Cold sequential read of {size_bytes // MIB} MiB, empty L1",
            ["", "seconds", "speed", "of zstd -d on one core"],
        )
        cases: list[tuple[str, Callable[[Path], None]]] = [
            ("store in the page cache", files.load_into_page_cache),
            ("store on the disk", files.drop_from_page_cache),
        ]
        for case, prepare in cases:
            zstd_s, cachefs_s = [], []
            for _ in range(rounds):
                prepare(packed)
                command = ["zstd", "-q", "-d", "-c", packed]
                zstd_s.append(clock.time_program(command, cores=1).wall_s)
                cachefs_s.append(read_cold(store, work, mount_options, prepare, size_bytes))
            zstd, cold = median(zstd_s), median(cachefs_s)
            table.add(
                f"zstd -d on one core, {case}", f"{zstd:.2f}", rate(size_bytes / zstd), "1.00"
            )
            ratio = zstd / cold
            table.add(f"cachefs, {case}", f"{cold:.2f}", rate(size_bytes / cold), f"{ratio:.2f}")
            target = TARGET * fetcher_cores
            verdict = "reached" if ratio >= target else "MISSED"
            table.notes.append(
                f"{case}, {fetcher_cores} cores for fetchers: target {target:.2f} {verdict}"
                f" ({ratio:.2f})"
            )
    publish([table], markdown)


if __name__ == "__main__":
    main()
