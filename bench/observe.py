"""What it costs to be observed: the processor time of all that looks at reads, but fetches nothing.

Records as the lane writes them, in batches of 50 ms, through what the daemon does with each:
condensing, streams, pattern, all arms, the plan. Run it as `make bench-observe`.
"""

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt

from bench.table import Table, publish
from cachefs.policy.prefetch.arms import learning_arms
from cachefs.policy.prefetch.plan import Plan
from cachefs.policy.prefetch.sequential import Sequential
from cachefs.prefetch.condense import Condenser
from cachefs.prefetch.cpu_share import CpuShare
from cachefs.prefetch.prefetcher import access_of
from cachefs.simulate.ahead import Recorded, unlike_keys
from cachefs.tiers.board import ACCESS_DTYPE
from cachefs.units import GIB, KIB

BATCH_S = 0.05
CHUNK_BYTES = 64 * KIB
IMAGE_BYTES = 64 * GIB
IMAGE = Recorded(CHUNK_BYTES, unlike_keys(IMAGE_BYTES // CHUNK_BYTES))
WANTED_US = 1.0
WANTED_SHARE = 0.05

Offsets = Iterator[int]


def sequential() -> Offsets:
    """From the beginning on."""
    yield from range(0, IMAGE_BYTES, 4 * KIB)


def at_random() -> Offsets:
    """Anywhere."""
    chance = random.Random(1)
    while True:
        yield chance.randrange(IMAGE_BYTES // 4096) * 4096


def strided() -> Offsets:
    """One read in each fourth chunk."""
    yield from range(0, IMAGE_BYTES, 256 * KIB)


def interleaved() -> Offsets:
    """Eight runs and as many jumps, one read each in turn."""
    runs = [range(n * 8 * GIB, (n + 1) * 8 * GIB, 4 * KIB) for n in range(8)]
    jumps = at_random()
    for places in zip(*runs, strict=True):
        for place in places:
            yield place
            yield next(jumps)


PATTERNS: dict[str, Callable[[], Offsets]] = {
    "sequential": sequential,
    "random": at_random,
    "strided": strided,
    "8 runs among as many jumps": interleaved,
}


def batches(
    offsets: Offsets, per_s: int, seconds: float, *, by_lane: bool
) -> list[npt.NDArray[np.void]]:
    """Return the lane's records of so many reads a second of 4 KiB."""
    size = int(per_s * BATCH_S)
    made = []
    for number in range(int(seconds / BATCH_S)):
        records = np.zeros(size, ACCESS_DTYPE)
        records["offset"] = [next(offsets) for _ in range(size)]
        records["inode"], records["pid"], records["length"] = 7, 42, 4 * KIB
        records["by_lane"] = by_lane
        records["at_ns"] = (number + np.arange(size) / size) * BATCH_S * 1e9
        made.append(records)
    return made


def observe(made: list[npt.NDArray[np.void]], share: CpuShare | None) -> tuple[float, float]:
    """Return the seconds of processor that the batches take, and how many of them were looked at.

    `share`: what a mount allows for it; None: all that it takes.
    """
    arms, image = [Sequential(), *learning_arms()], IMAGE
    plan, condenser = Plan(), Condenser()
    for arm in arms:
        arm.opened(image, 0.0)
    begun_s = time.process_time()
    missed = seen = 0
    for number, records in enumerate(made):
        batch_s = time.process_time()
        is_seen = share is None or share.is_left(number * BATCH_S)
        seen += is_seen
        missed += int((records["by_lane"] == 0).sum())
        for span in condenser.spans(records, missed):
            access = access_of(span, IMAGE_BYTES, CHUNK_BYTES)
            if access is None:
                continue
            plan.read(access.first, access.count)
            for arm in arms if is_seen else arms[1:2]:  # the replay records in any case
                for wish in arm.observe(image, access):
                    plan.add(arm.name, wish, access.time_s)
        plan.clear()  # as if all of it had been fetched
        if share is not None:
            share.spend(time.process_time() - batch_s)
    return time.process_time() - begun_s, seen / len(made)


@click.command()
@click.option("--per-s", default=5000, show_default=True, help="Accesses a second.")
@click.option("--seconds", default=30.0, show_default=True, help="Of reads.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Write the table here, too.")
def main(per_s: int, seconds: float, markdown: Path | None) -> None:
    """Measure what observing costs."""
    table = Table(
        f"Observing {per_s} accesses a second of 4 KiB, for {seconds:g} s",
        [
            "",
            "us a hit",
            "of a core",
            "us a miss, if all are seen",
            "of a core",
            "in a mount",
            "seen",
        ],
    )
    for name, offsets in PATTERNS.items():
        hits, misses = (
            batches(offsets(), per_s, seconds, by_lane=by_lane) for by_lane in (True, False)
        )
        count = sum(map(len, hits))
        row = []
        for made in (hits, misses):
            took_s = min(observe(made, None)[0] for _ in range(2))
            row += [f"{took_s / count * 1e6:.2f}", f"{100 * took_s / seconds:.2f}%"]
        took_s, seen = observe(misses, CpuShare())
        table.add(name, *row, f"{100 * took_s / seconds:.2f}%", f"{100 * seen:.0f}%")
    table.notes.append(f"Wanted: {WANTED_US} us a hit, {100 * WANTED_SHARE:.0f}% of a core.")
    publish([table], markdown)


if __name__ == "__main__":
    main()
