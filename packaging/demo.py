"""What cachefs does, shown on real files in a temporary folder (`make demo`).

Imports two versions of a disk image with a file system in it, and a file like a guest's memory;
mounts them; reads them twice and compares every byte; shows what was fetched, deduplicated and
served from where; unmounts, also on failure. Each command line is printed as one would type it.
"""

import json
import os
import random
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.images.disks import MIB, build_two_versions
from tests.images.memory import build_memory

CACHEFS = Path(sys.executable).with_name("cachefs")
DISK_BYTES = 256 * MIB
MEMORY_BYTES = 128 * MIB
COMPARE_BYTES = 4 * MIB
SMALL_READ_BYTES = 4096
SMALL_READS = 2000
# Figures of `cachefs status --json` that tell where bytes came from, in the order of a read's way.
FIGURES = {
    "lane_reads": "reads that never came to Python: the lane answered",
    "zero_chunks": "chunks of zeros, which are stored and cached nowhere",
    "l1_hit_chunks": "chunks from the local cache (L1)",
    "miss_chunks": "chunks that L1 did not have",
    "l3_chunks": "chunks fetched from the store (L3)",
    "l3_requests": "requests to the store for them",
    "l3_frame_bytes": "bytes fetched, compressed",
    "l3_plain_bytes": "bytes that they held",
}

console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)


class DemoError(Exception):
    """The demo cannot go on, or cachefs did not do what it should."""


@dataclass(frozen=True)
class Reading:
    """One run over all images.

    Attributes:
        whole_s: Seconds for reading and comparing whole files.
        whole_bytes: How much that was.
        small_us: Microseconds of each small random read, sorted.
        figures: What the mount's counters grew by.
    """

    whole_s: float
    whole_bytes: int
    small_us: Sequence[float]
    figures: Mapping[str, int]


def run(*arguments: str | Path) -> str:
    """Print a command line of cachefs, run it, and return what it prints."""
    words = shlex.join(["cachefs", *map(str, arguments)])
    console.print(f"[bold green]$[/] [bold]{words}[/]", soft_wrap=True)
    return run_quietly(*arguments)


def run_quietly(*arguments: str | Path) -> str:
    """Run a command line of cachefs and return what it prints."""
    done = subprocess.run([CACHEFS, *arguments], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        words = shlex.join(["cachefs", *map(str, arguments)])
        raise DemoError(f"`{words}` ended with {done.returncode}")
    return done.stdout


def say(text: str) -> None:
    """Print what comes next."""
    console.print(f"\n[cyan]{text}[/]")


def make_images(folder: Path) -> dict[str, Path]:
    """Make the images; returns them by the names that they will have in the store."""
    say("Two versions of a disk image (ext4, this system's own files), and a guest's memory")
    first, second = build_two_versions(folder, DISK_BYTES)
    memory = build_memory(folder / "memory.img", MEMORY_BYTES)
    return {"templates/debian-1": first, "templates/debian-2": second, "snapshots/memory": memory}


def import_images(store: Path, images: Mapping[str, Path]) -> None:
    """Import all images and show what became of their bytes."""
    say("A store in a local folder (it could be a bucket), and the images in it")
    run("init", store)
    table = Table()
    for head in ("image", "size", "zeros", "duplicate", "new", "compressed", "seconds"):
        table.add_column(head, justify="left" if head == "image" else "right", no_wrap=True)
    for name, image in images.items():
        begin_s = time.perf_counter()
        told = json.loads(run("import", "--store", store, "--json", image, name))
        taken_s = time.perf_counter() - begin_s
        table.add_row(*import_row(name, told), f"{taken_s:.1f}")
    console.print(table)


def import_row(name: str, told: Mapping[str, Any]) -> list[str]:
    """Return the cells of an import's row from what `cachefs import --json` told."""
    return [
        name,
        in_mib(told["size_bytes"]),
        in_mib(told["zero_bytes"]),
        in_mib(told["duplicate_bytes"]),
        in_mib(told["new_bytes"]),
        in_mib(told["new_stored_bytes"]),
    ]


@contextmanager
def mounted(store: Path, cache: Path, mountpoint: Path) -> Iterator[None]:
    """Mount the store; unmount at the end, whatever happened."""
    say("The store as a folder of plain read-only files")
    run("mount", "--store", store, "--cache-dir", cache, mountpoint)
    try:
        yield
    finally:
        say("The end")
        run("umount", mountpoint)


def read_all(title: str, images: Mapping[str, Path], mountpoint: Path) -> Reading:
    """Compare whole images and small random reads with the files that they were imported from."""
    say(title)
    before = read_figures(mountpoint)
    pairs = [(image, mountpoint / name) for name, image in images.items()]
    small_us = sorted(us for image, mounted in pairs for us in compare_small(image, mounted))
    begin_s = time.perf_counter()
    for image, mounted_image in pairs:
        compare_whole(image, mounted_image)
    whole_s = time.perf_counter() - begin_s
    after = read_figures(mountpoint)
    whole_bytes = sum(image.stat().st_size for image, _ in pairs)
    console.print(
        f"{len(small_us)} reads of 4 KiB at random, then {in_mib(whole_bytes)}: all equal"
    )
    grown = {name: after[name] - before[name] for name in FIGURES}
    return Reading(whole_s, whole_bytes, small_us, grown)


def compare_small(image: Path, mounted_image: Path) -> Iterator[float]:
    """Compare small reads at random places; yields how many microseconds each took."""
    chance = random.Random(1)
    blocks = image.stat().st_size // SMALL_READ_BYTES
    with image.open("rb") as expected, mounted_image.open("rb", buffering=0) as actual:
        # Otherwise the kernel reads ahead, and the next run would not be asked.
        os.posix_fadvise(actual.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        for _ in range(SMALL_READS):
            offset = chance.randrange(blocks) * SMALL_READ_BYTES
            begin_ns = time.perf_counter_ns()
            found = os.pread(actual.fileno(), SMALL_READ_BYTES, offset)
            yield (time.perf_counter_ns() - begin_ns) / 1000
            if found != os.pread(expected.fileno(), SMALL_READ_BYTES, offset):
                raise DemoError(f"{mounted_image} differs from {image} at byte {offset}")


def compare_whole(image: Path, mounted_image: Path) -> None:
    """Compare whole files, then make the kernel forget what it keeps of the mounted one."""
    with image.open("rb") as expected, mounted_image.open("rb", buffering=0) as actual:
        offset = 0
        while block := expected.read(COMPARE_BYTES):
            if block != os.pread(actual.fileno(), len(block), offset):
                raise DemoError(f"{mounted_image} differs from {image} behind byte {offset}")
            offset += len(block)
        os.posix_fadvise(actual.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_figures(mountpoint: Path) -> dict[str, int]:
    """Return the mount's counters."""
    told = json.loads(run_quietly("status", "--json", mountpoint))
    metrics: dict[str, int] = told["daemon"]["metrics"]
    by_lane: dict[str, int] = told["lane"]["reads"]
    metrics["lane_reads"] = by_lane["hits"]
    metrics["l1_hit_chunks"] += by_lane["hit_chunks"]
    metrics["zero_chunks"] += by_lane["zero_chunks"]
    return metrics


def show_readings(readings: Mapping[str, Reading]) -> None:
    """Show the runs side by side."""
    table = Table(
        "",
        *readings,
        title_justify="left",
        title="What the reads took, and where their bytes came from",
    )
    for column in table.columns[1:]:
        column.justify = "right"
    runs = list(readings.values())
    table.add_row("whole files", *(f"{r.whole_bytes / MIB / r.whole_s:.0f} MiB/s" for r in runs))
    table.add_row("4 KiB at random, median", *(f"{quantile(r, 0.5):.0f} us" for r in runs))
    table.add_row("4 KiB at random, 99 of 100", *(f"{quantile(r, 0.99):.0f} us" for r in runs))
    table.add_section()
    for name, meaning in FIGURES.items():
        in_bytes = name.endswith("_bytes")
        shown = (in_mib(r.figures[name]) if in_bytes else f"{r.figures[name]:,}" for r in runs)
        table.add_row(meaning, *shown)
    console.print(table)


def quantile(reading: Reading, share: float) -> float:
    """Return a quantile of the small reads, in microseconds."""
    return reading.small_us[int(len(reading.small_us) * share)]


def in_mib(size_bytes: int) -> str:
    """Return a size for people."""
    return f"{size_bytes / MIB:.1f} MiB"


def main() -> int:
    """Run the demo; returns the exit code."""
    begin_s = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory(prefix="cachefs-demo-") as work:
            folder = Path(work)
            mountpoint = folder / "mnt"
            mountpoint.mkdir()
            images = make_images(folder)
            import_images(folder / "store", images)
            with mounted(folder / "store", folder / "cache", mountpoint):
                say("As any program sees them")
                console.print(run("images", "--store", folder / "store"))
                readings = {
                    "first run": read_all("A first run: L1 is empty", images, mountpoint),
                    "second run": read_all("A second run: L1 is warm", images, mountpoint),
                }
                show_readings(readings)
                console.print(run("status", mountpoint))
    except DemoError as error:
        console.print(f"[bold red]{error}[/]")
        return 1
    console.print(f"\nAll bytes were right. That took {time.perf_counter() - begin_s:.0f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
