"""Import: its speed on one core and on all, beside `zstd -3 -T1` of the same bytes.

Run it as `make bench-import`.
"""

import os
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import click

from bench import clock, files, mounts
from bench.clock import Timed
from bench.table import Table, publish, rate, size
from tests.images.disks import MIB

TARGET_BYTES_PER_S = 150e6


def time_import(store: Path, image: Path, cores: int | None, fresh: bool) -> Timed:
    """Import an image into a store and time it.

    Args:
        store: The store's folder.
        image: The image.
        cores: As for `clock.time_program`.
        fresh: Into a new store; otherwise into what an import of the same has left.
    """
    if fresh:
        shutil.rmtree(store, ignore_errors=True)
        mounts.run_cachefs("init", str(store))
    command = [mounts.CACHEFS, "import", "--store", store, "--json", image, "image"]
    return clock.time_program(command, cores)


@click.command()
@click.option("--image", type=click.Path(path_type=Path, exists=True), help="Import this image.")
@click.option("--size-mib", default=768, show_default=True, help="Size of the image made else.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--markdown", type=click.Path(path_type=Path), help="Write the table here, too.")
def main(image: Path | None, size_mib: int, rounds: int, markdown: Path | None) -> None:
    """Measure imports beside zstd."""
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="import-")))
        image = image or files.build_dense_image(work / "dense.img", size_mib * MIB)
        size_bytes = image.stat().st_size
        store = work / "store"
        files.load_into_page_cache(image)
        timed: dict[str, list[Timed]] = {}
        for _ in range(rounds):
            for name, timing in {
                "zstd -3 -T1": clock.time_program(["zstd", "-q", "-3", "-T1", "-c", image], 1),
                "cachefs import, one core": time_import(store, image, 1, fresh=True),
                "cachefs import, all cores": time_import(store, image, None, fresh=True),
                "cachefs import, all duplicates": time_import(store, image, None, fresh=False),
            }.items():
                timed.setdefault(name, []).append(timing)
        table = Table(
            f"Import of {size(size_bytes)} at the default level",
            ["", "seconds", "speed", "seconds of processor", "per core"],
        )
        for name, timings in timed.items():
            wall_s, cpu_s = (median(t.wall_s for t in timings), median(t.cpu_s for t in timings))
            table.add(
                name,
                f"{wall_s:.2f}",
                rate(size_bytes / wall_s),
                f"{cpu_s:.2f}",
                rate(size_bytes / cpu_s),
            )
        one_core = size_bytes / median(t.wall_s for t in timed["cachefs import, one core"])
        verdict = "reached" if one_core >= TARGET_BYTES_PER_S else "MISSED"
        table.notes.append(
            f"Target {TARGET_BYTES_PER_S / 1e6:.0f} MB/s per core {verdict}: {one_core / 1e6:.0f}"
            f" MB/s on one; all {os.cpu_count()} cores include start and end of the program."
        )
    publish([table], markdown)


if __name__ == "__main__":
    main()
