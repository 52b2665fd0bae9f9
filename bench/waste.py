"""What random readers pay for fetching ahead: chunks that were fetched and that nobody read.

Runs at random places of an image that no codec makes smaller, one after another, with an empty L1.
What the kernel's own readahead asks for beyond a buffered read is in `fetched`, and not `ahead`.
Nothing is known of the image, but where a case says that others have read it before: then there is
a profile of that.
Run it as `make bench-waste`.
"""

import mmap
import os
import random
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import click

from bench import files, mounts
from bench.table import Table, publish
from cachefs.units import KIB, MIB

WANTED_SHARE = 0.05
CHUNK_BYTES = 64 * KIB
SEED = 3
SETTLE_S = 7.5
"""After the close: then what was not read counts as wasted."""


class Case(NamedTuple):
    """Runs of one size."""

    name: str
    size_bytes: int
    runs: int
    is_direct: bool
    read_bytes: int = 0
    """Of one read; 0: a run is one."""
    before: int = 0
    """Random readers of other places, whom the image's profile remembers."""


CASES = (
    Case("4 KiB, O_DIRECT", 4 * KIB, 1500, True),
    Case("4 KiB, buffered", 4 * KIB, 1500, False),
    Case("64 KiB, O_DIRECT", 64 * KIB, 600, True),
    Case("64 KiB, buffered", 64 * KIB, 600, False),
    Case("128 KiB, O_DIRECT", 128 * KIB, 500, True),
    Case("256 KiB, O_DIRECT", 256 * KIB, 300, True),
    Case("256 KiB, buffered", 256 * KIB, 300, False),
    Case("1 MiB, O_DIRECT", MIB, 150, True),
    Case("1 MiB, buffered", MIB, 150, False),
    Case("3 MiB, O_DIRECT", 3 * MIB, 60, True),
    Case("3 MiB, buffered", 3 * MIB, 60, False),
    Case("256 KiB by 32 KiB, O_DIRECT", 256 * KIB, 300, True, 32 * KIB),
    Case("1 MiB by 128 KiB, O_DIRECT", MIB, 150, True, 128 * KIB),
    Case("1 MiB by 128 KiB, buffered", MIB, 150, False, 128 * KIB),
    Case("3 MiB by 128 KiB, O_DIRECT", 3 * MIB, 60, True, 128 * KIB),
    Case("3 MiB by 128 KiB, buffered", 3 * MIB, 60, False, 128 * KIB),
    Case("4 KiB, O_DIRECT, one before", 4 * KIB, 1500, True, before=1),
    Case("64 KiB, O_DIRECT, one before", 64 * KIB, 600, True, before=1),
    Case("64 KiB, O_DIRECT, three before", 64 * KIB, 600, True, before=3),
    Case("64 KiB, buffered, one before", 64 * KIB, 600, False, before=1),
    Case("1 MiB, buffered, one before", MIB, 150, False, before=1),
    Case("3 MiB, buffered, three before", 3 * MIB, 60, False, before=3),
)


def read_at_random(path: Path, case: Case, seed: int) -> int:
    """Read, and return how many chunks were touched."""
    chance = random.Random(seed)
    touched: set[int] = set()
    read_bytes = case.read_bytes or case.size_bytes
    fd = os.open(path, os.O_RDONLY | (os.O_DIRECT if case.is_direct else 0))
    try:
        size_bytes = os.fstat(fd).st_size
        with mmap.mmap(-1, read_bytes) as buffer:
            for _ in range(case.runs):
                begin = chance.randrange((size_bytes - case.size_bytes) // 4096) * 4096
                for at in range(begin, begin + case.size_bytes, read_bytes):
                    os.preadv(fd, [buffer], at)
                last = (begin + case.size_bytes - 1) // CHUNK_BYTES
                touched.update(range(begin // CHUNK_BYTES, last + 1))
    finally:
        os.close(fd)
    return len(touched)


def measured(work: Path, case: Case, seed: int) -> tuple[int, dict[str, Any]]:
    """Read through a new mount; returns the chunks touched, and what the daemon says at the end.

    What the image's profile was before it has been read, it is again, and one reader more.
    """
    shutil.rmtree(work / "cache", ignore_errors=True)
    shutil.rmtree(work / "store/profiles", ignore_errors=True)
    profile = work / "profile"
    with mounts.mounted_store(work / "store", work) as mountpoint:
        if profile.exists():
            mounts.run_cachefs("profile", "import", str(mountpoint), "image", str(profile))
        touched = read_at_random(mountpoint / "image", case, seed)
        time.sleep(SETTLE_S)
        mounts.run_cachefs("profile", "export", str(mountpoint), "image", str(profile))
        return touched, mounts.status(mountpoint)["daemon"]


def wasted_by(daemon: dict[str, Any]) -> str:
    """Return how many chunks each arm wasted, the worst first."""
    ends = daemon["prefetch"]["arms"]
    counts = sorted(((arm["wasted"] + arm["evicted"], name) for name, arm in ends.items()))
    return ", ".join(f"{name} {count}" for count, name in reversed(counts) if count)


@click.command()
@click.option("--size-mib", default=512, show_default=True, help="Size of the image.")
@click.option("--only", default="", help="Cases whose names have this in them.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Write the table here, too.")
def main(size_mib: int, only: str, markdown: Path | None) -> None:
    """Measure what random readers waste."""
    table = Table(
        f"Runs at random places of {size_mib} MiB, empty L1, one after another",
        ["", "chunks touched", "fetched", "of them ahead", "ahead and read", "bytes wasted", "by"],
    )
    with tempfile.TemporaryDirectory(prefix="waste-") as name:
        work = Path(name)
        image = files.build_noise(work / "image.img", size_mib * MIB)
        mounts.run_cachefs("init", str(work / "store"))
        mounts.import_image(work / "store", image, "image")
        for case in CASES:
            if only not in case.name:
                continue
            (work / "profile").unlink(missing_ok=True)
            for earlier in range(case.before):
                measured(work, case, SEED + 1 + earlier)
            touched, daemon = measured(work, case, SEED)
            metrics = daemon["metrics"]
            share = metrics["ahead_wasted_bytes"] / max(1, metrics["l3_frame_bytes"])
            read = metrics["ahead_used"] + metrics["ahead_late"]
            counts = (touched, metrics["l3_chunks"], metrics["ahead_chunks"], read)
            table.add(case.name, *map(str, counts), f"{100 * share:.1f}%", wasted_by(daemon))
    table.notes.append(f"Wanted: at most {100 * WANTED_SHARE:.0f}% of the bytes wasted.")
    publish([table], markdown)


if __name__ == "__main__":
    main()
