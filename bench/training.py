"""Hits while eviction learns: their tail while a model is trained, and the CPU of the daemon.

Small random reads of an image that is all in L1, a fixed number a second, in turns: with LRU, with
`ml` while nothing is trained, with `ml` while one training follows the other. That it was trained,
how often and for how long, is counted by the daemon. Run it as `make bench-training`.
"""

import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from bench import files, fio, mounts
from bench.fio import Result
from bench.table import Table, publish
from cachefs.cli.mount import ask_daemon, run_folder
from cachefs.policy.evict.ml.samples import MOST_LABELLED
from tests.images.disks import MIB

RATE = 5000
"""Reads a second, each of one chunk: what the CPU of a policy is judged at."""

MOST_CPU_PERCENT = 5.0
"""Of a core, that `ml` may take more than LRU."""

READS = fio.Workload("4 KiB random", "randread", 4096, 1, engine="psync")
FAST_READS = fio.Workload("4 KiB random, fast", "randread", 4096, 8)

ASK_INTERVAL_S = 0.5
WARM_UP_S = 120.0
MOST_TRIES = 4
LRU, CALM, TRAINS = ROWS = ("lru", "ml, no training", "ml, trains")


Latencies = npt.NDArray[np.float64]
"""In microseconds."""

Span = tuple[float, float]
"""Unix times."""


@dataclass(frozen=True)
class Turn:
    """One turn of one row.

    Attributes:
        meanwhile_us: Latencies of the reads that came back while a model was trained.
    """

    result: Result
    cpu_percent: float
    trainings: int
    training_s: float
    meanwhile_us: Latencies


@dataclass(frozen=True)
class Spent:
    """What a daemon has used up so far."""

    when_s: float
    cpu_s: float
    trainings: int
    training_s: float


def ask(mountpoint: Path, **request: str) -> dict[str, Any]:
    """Ask the daemon, without the start of a process."""
    return ask_daemon(run_folder(mountpoint), dict(request), 10.0)


def spent(mountpoint: Path) -> Spent:
    """Return what the daemon has used up."""
    metrics = ask(mountpoint, command="status")["metrics"]
    pid = mounts.status(mountpoint)["daemon"]["pid"]
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    cpu_s = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")  # of its children, too
    trainings, training_s = metrics["trainings"], metrics["training_us"] / 1e6
    return Spent(time.monotonic(), cpu_s, trainings, training_s)


@contextmanager
def watched(mountpoint: Path, *, trains: bool) -> Iterator[set[Span]]:
    """Ask about the model meanwhile, and yield when one was trained, as far as that is known yet.

    `trains`: forget each at once, so that the next is trained.
    """
    over = threading.Event()
    spans: set[Span] = set()

    def ask_again() -> None:
        while not over.wait(ASK_INTERVAL_S):
            told = classes(mountpoint, "show")
            spans.update((e["trained_at"] - e["training_s"], e["trained_at"]) for e in told)
            if trains and all(each["trainings"] for each in told):
                classes(mountpoint, "reset")

    asker = threading.Thread(target=ask_again)
    asker.start()
    try:
        yield spans
    finally:
        over.set()
        asker.join()


def classes(mountpoint: Path, action: str) -> list[dict[str, Any]]:
    """Return what each class of slots has learned."""
    return list(ask(mountpoint, command="model", action=action)["classes"].values())


def turn(mountpoint: Path, name: str, path: Path, runtime_s: float, rate: int) -> Turn:
    """Read at the fixed rate and see what it costs."""
    policy = name.partition(",")[0]
    mounts.run_cachefs("policy", str(mountpoint), policy)
    spans: set[Span] = set()
    with ExitStack() as stack:
        log = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="latencies-"))) / "fio"
        options = [f"--write_lat_log={log}", "--log_unix_epoch=1", f"--rate_iops={rate}"]
        if policy == "ml":
            fill_samples(mountpoint, path)
            spans = stack.enter_context(watched(mountpoint, trains=name == TRAINS))
        time.sleep(2 * ASK_INTERVAL_S)
        before = spent(mountpoint)
        result = fio.measure(path, READS, runtime_s, 0, *options)
        after = spent(mountpoint)
        time.sleep(2 * ASK_INTERVAL_S)
        rows = np.loadtxt(f"{log}_clat.1.log", delimiter=",", usecols=(0, 1))
    return Turn(
        result,
        100 * (after.cpu_s - before.cpu_s) / (after.when_s - before.when_s),
        after.trainings - before.trainings,
        after.training_s - before.training_s,
        latencies_in(rows, spans),
    )


def latencies_in(rows: Latencies, spans: set[Span]) -> Latencies:
    """Return latencies of reads that ended in these spans; rows: Unix time, ms, and latency, ns."""
    ended_s = rows[:, 0] / 1e3
    wanted = np.zeros(len(rows), np.bool_)
    for begin_s, end_s in spans:
        wanted |= (ended_s >= begin_s) & (ended_s <= end_s)
    return np.asarray(rows[wanted, 1] / 1e3)


def sound_turn(mountpoint: Path, name: str, path: Path, runtime_s: float, rate: int) -> Turn:
    """Take a turn, again if something was trained in it that was not to be, or nothing."""
    for _ in range(MOST_TRIES):
        found = turn(mountpoint, name, path, runtime_s, rate)
        if (found.trainings > 0) == (name == TRAINS):
            return found
    raise RuntimeError(f"{MOST_TRIES} turns of '{name}' in a row were none")


def fill_samples(mountpoint: Path, path: Path) -> None:
    """Read fast until each training is of as many samples as there are ever."""
    end_s = time.monotonic() + WARM_UP_S
    while True:
        labelled = [each["labelled_samples"] for each in classes(mountpoint, "show")]
        if labelled and min(labelled) >= MOST_LABELLED:
            return
        if time.monotonic() > end_s:
            raise RuntimeError("the samples do not come")
        fio.measure(path, FAST_READS, 2.0)


def table_of(turns: dict[str, list[Turn]], title: str) -> Table:
    """Return what turns showed."""
    table = Table(
        title,
        [
            "",
            "p50 us",
            "p99 us",
            "p99.9 us",
            "longest us",
            "p99, of lru",
            "p99.9",
            "p99, of ml without",
            "p99.9",
            "daemon, % of a core",
            "trainings",
            "their s",
        ],
    )
    for name, mine in turns.items():
        result = fio.median_result([each.result for each in mine])
        table.add(
            name,
            f"{result.p50_us:.0f}",
            f"{result.p99_us:.0f}",
            f"{result.p999_us:.0f}",
            f"{result.longest_us:,.0f}",
            *ratios(mine, turns[LRU]),
            *ratios(mine, turns[CALM]),
            f"{median(each.cpu_percent for each in mine):.1f}",
            f"{sum(each.trainings for each in mine)}",
            f"{sum(each.training_s for each in mine):.1f}",
        )
    latencies = np.concatenate([each.meanwhile_us for each in turns[TRAINS]])
    p50, p99, p999 = np.percentile(latencies, (50, 99, 99.9))
    calm = fio.median_result([each.result for each in turns[CALM]])
    table.notes.append(
        f"The {len(latencies):,} of these reads that ended during a training: p50 {p50:.0f} us, "
        f"p99 {p99:.0f} ({p99 / calm.p99_us:.2f} of 'ml, no training'), p99.9 {p999:.0f}."
    )
    own = [median(each.cpu_percent for each in turns[name]) for name in (LRU, CALM)]
    verdict = "reached" if own[1] - own[0] <= MOST_CPU_PERCENT else "MISSED"
    table.notes.append(
        f"Of a core, ml takes {own[1] - own[0]:.1f}% more than lru; "
        f"at most {MOST_CPU_PERCENT:g}%: {verdict}."
    )
    return table


def ratios(mine: list[Turn], others: list[Turn]) -> tuple[str, str]:
    """Return the medians of p99 and p99.9 beside those of the same rounds."""
    pairs = [(one.result, other.result) for one, other in zip(mine, others, strict=True)]
    p99 = median(one.p99_us / other.p99_us for one, other in pairs)
    p999 = median(one.p999_us / other.p999_us for one, other in pairs)
    return f"{p99:.2f}", f"{p999:.2f}"


@click.command()
@click.option("--size-mib", default=256, show_default=True, help="Size of the image.")
@click.option("--runtime", "runtime_s", default=10.0, show_default=True, help="Seconds a turn.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--rate", default=RATE, show_default=True, help="Reads a second.")
@click.option("--mount-options", default="", help="Options of the cachefs mount.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Write the table here, too.")
def main(
    size_mib: int,
    runtime_s: float,
    rounds: int,
    rate: int,
    mount_options: str,
    markdown: Path | None,
) -> None:
    """Measure the latency of hits while eviction learns."""
    turns: dict[str, list[Turn]] = {name: [] for name in ROWS}
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="training-")))
        store = work / "store"
        image = files.build_noise(work / "hot.img", size_mib * MIB)
        mounts.run_cachefs("init", str(store))
        mounts.import_image(store, image, "hot")
        mountpoint = stack.enter_context(mounts.mounted_store(store, work, mount_options))
        path = mountpoint / "hot"
        mounts.warm(path)
        for _ in range(rounds):
            for name in ROWS:
                turns[name].append(sound_turn(mountpoint, name, path, runtime_s, rate))
    table = table_of(turns, f"4 KiB hits at {rate:,} reads a second")
    publish([table], markdown)


if __name__ == "__main__":
    main()
