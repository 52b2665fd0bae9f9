"""Arms on real traces and boots: accuracy, coverage, lateness and stall, each and together.

The traces are no part of the repository: `--traces` names their folder, `../shared/traces` else;
boots are in `boots/` there, named by workload and run, all of one image.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np

from bench.table import Table, publish
from cachefs.policy.prefetch.arms import NAMES, learning_arms
from cachefs.policy.prefetch.learner import Rows
from cachefs.policy.prefetch.lstm import Weights
from cachefs.policy.prefetch.lstm_training import steps_of, train
from cachefs.policy.prefetch.replay import Replay as RecordAndReplay
from cachefs.policy.prefetch.seam import Arm
from cachefs.policy.prefetch.sequential import Sequential
from cachefs.simulate.ahead import Link, Recorded, Result, unlike_keys
from cachefs.simulate.plain import NextChunk, PlainSequential
from cachefs.simulate.readers import read_requests
from cachefs.simulate.session import Trace, play, trace_of
from cachefs.units import KIB

TRACES = Path(__file__).parents[2] / "shared/traces"
CHUNK_SIZES = (64 * KIB, 512 * KIB)
CACHE_SHARE = 0.1

TRAINED_REQUESTS = 40_000
"""Of each of the other traces, for the LSTM that is judged on one."""

Makers = dict[str, Callable[[Weights | None], list[Arm]]]


def sets_of_arms() -> Makers:
    """Return what is compared: plain readahead, each arm, and all together."""
    steady = [name for name in NAMES if name != "replay"]  # which is for what opens again
    return {
        "next chunk": lambda _: [NextChunk()],
        "plain sequential": lambda _: [PlainSequential()],
        "sequential": lambda _: [Sequential()],
        **{name: lambda _, name=name: learning_arms([name]) for name in steady},  # type: ignore[misc]
        "lstm": lambda weights: learning_arms(["lstm"], weights),
        "learning arms": lambda _: learning_arms(),
        "all": lambda _: everything(),
        "all, lstm": lambda weights: [Sequential(), *learning_arms([*NAMES, "lstm"], weights)],
    }


def read_trace(path: Path, chunk_bytes: int, limit: int) -> Trace:
    """Return the first `limit` requests of a recording."""
    return trace_of(read_requests(path), chunk_bytes, limit)


def played(*arguments: Any) -> Result:
    """Play a recording; see session.play. Returns what it showed."""
    return play(*arguments)[0].result


def cell(result: Result, plain: Result) -> str:
    """Return accuracy / coverage in percent."""
    coverage = (plain.misses - result.misses) / plain.misses
    return f"{100 * result.whole.accuracy:.0f} / {100 * coverage:.0f}"


def trace_tables(paths: Sequence[Path], limit: int, chosen: Makers) -> list[Table]:
    """Return tables at full speed and under the model of a store."""
    fast = Table("Accuracy / coverage, %, cache 10%, LRU", ("trace, chunk", *chosen))
    slow = Table(
        "Stall, s (and how much of what was used came late, %): 30 ms, 100 MB/s a stream",
        ("trace, chunk", "nothing", *chosen),
    )
    gaps: dict[str, dict[int, list[tuple[float, float]]]] = {name: {} for name in chosen}
    for path in paths:
        for chunk_bytes in CHUNK_SIZES:
            trace = read_trace(path, chunk_bytes, limit)
            image = Recorded(chunk_bytes, unlike_keys(trace.chunks))
            slots = max(1, int(trace.distinct * CACHE_SHARE))
            plain = {link: played(trace, image, slots, [], link) for link in (None, Link())}
            needs_weights = any("lstm" in name for name in chosen)
            weights = trained(paths, path, chunk_bytes) if needs_weights else None
            cells: list[list[str]] = [[], [f"{plain[Link()].stall_s:.0f}"]]
            for name, make in chosen.items():
                found = played(trace, image, slots, make(weights))
                cells[0].append(cell(found, plain[None]))
                gain = 1 - found.misses / plain[None].misses
                gaps[name].setdefault(chunk_bytes, []).append((found.whole.accuracy, gain))
                found = played(trace, image, slots, make(weights), Link())
                late = found.whole.late / max(1, found.whole.used)
                cells[1].append(f"{found.stall_s:.0f} ({100 * late:.0f})")
            for table, row in ((fast, cells[0]), (slow, cells[1])):
                table.add(f"{trace.name} {chunk_bytes // KIB}K", *row)
                print(table.rows[-1], file=sys.stderr, flush=True)
    for chunk_bytes in CHUNK_SIZES:
        means = [np.mean(gaps[name][chunk_bytes], axis=0) * 100 for name in chosen]
        fast.add(f"mean {chunk_bytes // KIB}K", *(f"{a:.0f} / {c:.0f}" for a, c in means))
    return [fast, slow]


def trained(paths: Sequence[Path], judged: Path, chunk_bytes: int) -> Weights | None:
    """Return weights that were trained on the other traces; None if there are none."""
    sequences = []
    for path in paths:
        if path != judged:
            trace = read_trace(path, chunk_bytes, TRAINED_REQUESTS)
            sequences.append(
                steps_of(Recorded(chunk_bytes, unlike_keys(trace.chunks)), trace.reads())
            )
    return train(sequences) if sequences else None


SITUATIONS = (
    "this boot, seen before",
    "the same on the next version",
    "other boots, this workload among them",
    "other workloads only",
    "one idle boot",
)


def boot_table(paths: Sequence[Path]) -> Table:
    """Return what record and replay and all arms do in boots, each with what others taught."""
    table = Table(
        "Boots: accuracy / coverage, %; stall without / with, s; bytes fetched / needed",
        ("what is known, chunk", "replay", "all arms", "stall", "bytes"),
    )
    for chunk_bytes in CHUNK_SIZES:
        boots = {
            path.name.partition(".")[0]: read_trace(path, chunk_bytes, 10**9) for path in paths
        }
        chunks = max(trace.chunks for trace in boots.values())
        image = Recorded(chunk_bytes, unlike_keys(chunks))
        for situation in SITUATIONS:
            rows = [boot_row(boots, name, situation, image) for name in boots if len(boots) > 1]
            replay, everything = (
                f"{100 * statistics.mean(r[i][0] for r in rows):.1f} / "
                f"{100 * statistics.mean(r[i][1] for r in rows):.1f}"
                for i in (0, 1)
            )
            stalls = [statistics.mean(row[2][i] for row in rows) for i in (0, 1)]
            table.add(
                f"{situation}, {chunk_bytes // KIB}K",
                replay,
                everything,
                f"{stalls[0]:.1f} / {stalls[1]:.2f}",
                f"{statistics.mean(row[2][2] for row in rows):.3f}",
            )
            print(table.rows[-1], file=sys.stderr, flush=True)
    return table


def boot_row(
    boots: dict[str, Trace], name: str, situation: str, image: Recorded
) -> tuple[tuple[float, float], tuple[float, float], tuple[float, float, float]]:
    """Return accuracy and coverage of the replay, and of all arms; stalls and bytes."""
    trace = boots[name]
    slots = image.chunks + 1  # nothing is evicted while a guest boots
    known: dict[str, Rows] = {}
    for other in teachers(boots, name, situation):
        known = play(boots[other], image, slots, everything(), None, known)[1]
    if situation == "the same on the next version":
        image, trace = next_version(image, trace)
    plain = played(trace, image, slots, [])
    found = [
        played(trace, image, slots, make(), None, known)
        for make in (lambda: [RecordAndReplay()], everything)
    ]
    slow = [played(trace, image, slots, arms, Link(), known) for arms in ([], everything())]
    pairs = [(r.whole.accuracy, 1 - r.misses / plain.misses) for r in found]
    bytes_share = (slow[1].whole.fetched + slow[1].misses) / plain.misses
    return pairs[0], pairs[1], (slow[0].stall_s, slow[1].stall_s, bytes_share)


def everything() -> list[Arm]:
    """Return all arms of the daemon."""
    return [Sequential(), *learning_arms()]


def teachers(boots: dict[str, Trace], name: str, situation: str) -> list[str]:
    """Return the boots that were seen before."""
    workload = name.rstrip("0123456789")
    if situation.startswith(("this boot", "the same")):
        return [name]
    if situation == "one idle boot":
        return [next(n for n in boots if n.startswith("idle") and n != name)]
    others = [n for n in boots if n != name]
    if situation == "other workloads only":
        others = [n for n in others if n.rstrip("0123456789") != workload]
    return others


def next_version(image: Recorded, trace: Trace, seed: int = 1) -> tuple[Recorded, Trace]:
    """Return an image and a boot of it after an upgrade that changed a tenth of what is touched.

    Of that, in runs of 1 to 8 chunks, a third is other content at the same place, a third the same
    content elsewhere, and a third other content elsewhere, while the old stays where it is.
    """
    rng = np.random.default_rng(seed)
    touched = np.unique(np.concatenate([trace.first, trace.first + trace.count - 1]))
    keys = np.concatenate((image.keys(0, image.chunks), unlike_keys(image.chunks, seed=77)))
    fresh = unlike_keys(len(keys), seed=78)
    place = np.arange(image.chunks)
    free, done = image.chunks, 0
    while done < len(touched) // 10:
        begin, count = int(rng.integers(0, len(touched))), int(rng.integers(1, 9))
        how = rng.integers(0, 3)
        for chunk in touched[begin : begin + count].tolist():
            if place[chunk] != chunk:
                continue
            if how == 0:
                keys[chunk] = fresh[chunk]
            else:
                place[chunk] = free
                keys[free] = fresh[free]
                if how == 1:
                    keys[free], keys[chunk] = keys[chunk], fresh[chunk]
                free += 1
            done += 1
    first = np.concatenate(
        [np.arange(f, f + c) for f, c in zip(trace.first, trace.count, strict=True)]
    )
    moved = Trace(
        trace.name,
        trace.chunk_bytes,
        place[first],
        np.ones(len(first), np.int64),
        np.repeat(trace.time_s, trace.count),
        place[first] * trace.chunk_bytes,
        np.full(len(first), trace.chunk_bytes),
    )
    return Recorded(image.chunk_bytes, keys), moved


def random_table(reads: int = 50_000) -> Table:
    """Return what a random reader makes the arms waste, in percent of the bytes it reads."""
    table = Table(
        "A random reader: bytes wasted, % of those it fetched itself", ("chunks", "wasted")
    )
    for chunks in (5_000, 50_000):
        rng = np.random.default_rng(chunks)
        chosen = rng.integers(0, chunks, reads)
        size = np.full(reads, 4 * KIB)
        trace = Trace(
            "random",
            64 * KIB,
            chosen,
            np.ones(reads, np.int64),
            np.arange(reads) / 1e3,
            chosen * 64 * KIB,
            size,
        )
        image = Recorded(trace.chunk_bytes, unlike_keys(chunks + 1))
        result = played(trace, image, chunks // 10, everything())
        wasted = result.whole.fetched - result.whole.used
        table.add(f"{chunks:,}", f"{100 * wasted / result.misses:.2f}")
    return table


def cost_table(paths: Sequence[Path], limit: int) -> Table:
    """Return the CPU of arms for each chunk access, without the simulator."""
    made = everything()
    table = Table("CPU, us a chunk access", ("trace", *(arm.name for arm in made), "all"))
    for path in paths:
        trace = read_trace(path, CHUNK_SIZES[0], limit)
        image = Recorded(trace.chunk_bytes, unlike_keys(trace.chunks))
        reads = trace.reads()
        total = int(trace.count.sum())
        costs = []
        for arms in (*([arm] for arm in made), everything()):
            for arm in arms:
                arm.opened(image, 0.0)
            started = process_time()
            for read in reads:
                for arm in arms:
                    arm.observe(image, read)
            costs.append((process_time() - started) / total * 1e6)
        table.add(trace.name, *(f"{cost:.1f}" for cost in costs))
        print(table.rows[-1], file=sys.stderr, flush=True)
    return table


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="bench.prefetch", description=__doc__)
    parser.add_argument("--traces", type=Path, default=TRACES)
    parser.add_argument("--limit", type=int, default=10**9, help="requests of each trace")
    parser.add_argument("--parts", default="traces,boots,random,cost")
    parser.add_argument("--arms", help="only these sets of arms, by the heads of the first table")
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    paths = sorted(options.traces.glob("*.npz"))
    boots = sorted((options.traces / "boots").glob("*.txt.gz"))
    if not paths and not boots:
        sys.exit(f"there are no traces in {options.traces}: name their folder, --traces")
    parts = options.parts.split(",")
    chosen = sets_of_arms()
    if options.arms:
        chosen = {name: chosen[name] for name in options.arms.split(",")}
    tables: list[Table] = []
    if "traces" in parts and paths:
        tables += trace_tables(paths, options.limit, chosen)
    if "boots" in parts and boots:
        tables.append(boot_table(boots))
    if "random" in parts:
        tables.append(random_table())
    if "cost" in parts and paths:
        tables.append(cost_table(paths, options.limit))
    publish(tables, options.markdown)


if __name__ == "__main__":
    main()
