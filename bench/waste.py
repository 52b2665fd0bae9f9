"""What random readers pay for fetching ahead: chunks that were fetched and that nobody read.

Reads at random places of an image that no codec makes smaller, one after another, with an empty L1.
What the kernel's own readahead asks for beyond a buffered read is in `fetched`, and not `ahead`.
Run it as `make bench-waste`.
"""

import mmap
import os
import random
import shutil
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import click

from bench import files, mounts
from bench.table import Table, publish
from cachefs.units import KIB, MIB

WANTED_SHARE = 0.05
CHUNK_BYTES = 64 * KIB
SETTLE_S = 7.5
"""After the close: then what was not read counts as wasted."""


class Case(NamedTuple):
    """Reads of one size."""

    name: str
    size_bytes: int
    reads: int
    is_direct: bool


CASES = (
    Case("4 KiB, O_DIRECT", 4 * KIB, 1500, True),
    Case("4 KiB, buffered", 4 * KIB, 1500, False),
    Case("64 KiB, O_DIRECT", 64 * KIB, 600, True),
    Case("64 KiB, buffered", 64 * KIB, 600, False),
    Case("128 KiB, O_DIRECT", 128 * KIB, 500, True),
    Case("1 MiB, O_DIRECT", MIB, 150, True),
    Case("1 MiB, buffered", MIB, 150, False),
    Case("3 MiB, buffered", 3 * MIB, 60, False),
)


def read_at_random(path: Path, case: Case) -> int:
    """Read, and return how many chunks were touched."""
    chance = random.Random(3)
    touched: set[int] = set()
    fd = os.open(path, os.O_RDONLY | (os.O_DIRECT if case.is_direct else 0))
    try:
        size_bytes = os.fstat(fd).st_size
        with mmap.mmap(-1, case.size_bytes) as buffer:
            for _ in range(case.reads):
                at = chance.randrange((size_bytes - case.size_bytes) // 4096) * 4096
                os.preadv(fd, [buffer], at)
                last = (at + case.size_bytes - 1) // CHUNK_BYTES
                touched.update(range(at // CHUNK_BYTES, last + 1))
    finally:
        os.close(fd)
    return len(touched)


@click.command()
@click.option("--size-mib", default=512, show_default=True, help="Size of the image.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Write the table here, too.")
def main(size_mib: int, markdown: Path | None) -> None:
    """Measure what random readers waste."""
    table = Table(
        f"Random reads of {size_mib} MiB, empty L1, one after another",
        ["", "chunks touched", "fetched", "of them ahead", "ahead and read", "bytes wasted"],
    )
    with tempfile.TemporaryDirectory(prefix="waste-") as name:
        work = Path(name)
        image = files.build_noise(work / "image.img", size_mib * MIB)
        mounts.run_cachefs("init", str(work / "store"))
        mounts.import_image(work / "store", image, "image")
        for case in CASES:
            shutil.rmtree(work / "cache", ignore_errors=True)
            with mounts.mounted_store(work / "store", work) as mountpoint:
                touched = read_at_random(mountpoint / "image", case)
                time.sleep(SETTLE_S)
                metrics = mounts.status(mountpoint)["daemon"]["metrics"]
            share = metrics["ahead_wasted_bytes"] / max(1, metrics["l3_frame_bytes"])
            read = metrics["ahead_used"] + metrics["ahead_late"]
            counts = (touched, metrics["l3_chunks"], metrics["ahead_chunks"], read)
            table.add(case.name, *map(str, counts), f"{100 * share:.1f}%")
    table.notes.append(f"Wanted: at most {100 * WANTED_SHARE:.0f}% of the bytes wasted.")
    publish([table], markdown)


if __name__ == "__main__":
    main()
