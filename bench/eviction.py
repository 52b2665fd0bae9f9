"""Policies on real traces: the gap between LRU and Belady's MIN that each closes.

The traces are no part of the repository: `--traces` names their folder, `../shared/traces` else.
`--made` takes workloads that are made instead, `--fleet` recorded boots as a fleet of guests.
`--lib` adds every policy of libCacheSim that runs, `--ablation` what each feature of `ml` is worth,
`--large` the CPU and memory of an L1 of 16 million chunks.
"""

import argparse
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from bench.ablation import ablation_table
from bench.table import Table, publish
from bench.workloads import MADE, fleet, made
from cachefs.policy.evict.names import POLICIES, make_policy
from cachefs.policy.evict.order import Ticks
from cachefs.policy.evict.seam import Arrival
from cachefs.simulate.accesses import SPAN, Requests, accesses_of
from cachefs.simulate.grid import Run, parse_cache_size, run_one
from cachefs.simulate.readers import read_requests
from cachefs.simulate.replay import gap_closed
from cachefs.units import KIB

TRACES = Path(__file__).parents[2] / "shared/traces"
SIZES = ("1%", "5%", "10%", "20%")
CHUNK_SIZES = (64 * KIB, 512 * KIB)
THEIRS = [
    "FIFO",
    "ARC",
    "Clock",
    "LFU",
    "LFUDA",
    "SLRU",
    "S3FIFO",
    "Sieve",
    "TwoQ",
    "LIRS",
    "LeCaR",
    "Cacheus",
    "LHD",
    "Hyperbolic",
    "GDSF",
    "WTinyLFU",
    "Clock2QPlus",
    "ClockPro",
    "ThreeLCache",
    "LRB",
    "GLCache",
    "MQ",
]


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="bench.eviction", description=__doc__)
    parser.add_argument("--traces", type=Path, default=TRACES)
    parser.add_argument("--policies", default=",".join(POLICIES))
    parser.add_argument("--sizes", default=",".join(SIZES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--made", action="store_true")
    parser.add_argument("--fleet", action="store_true")
    parser.add_argument("--lib", action="store_true")
    parser.add_argument("--ablation", action="store_true")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    if options.large:
        publish([large_table()], options.markdown)
        return
    traces = recordings(options)
    if not traces:
        sys.exit(f"there are no traces (*.npz) in {options.traces}: name their folder, --traces")
    sizes = options.sizes.split(",")
    if options.ablation:
        publish([ablation_table(traces, CHUNK_SIZES, sizes)], options.markdown)
        return
    publish(tables(traces, options, sizes), options.markdown)


def recordings(options: argparse.Namespace) -> list[Requests]:
    """Return what is to be replayed."""
    seeds = range(options.seeds)
    if options.made:
        return [made(name, seed) for name in MADE for seed in seeds]
    if options.fleet:
        boots = options.traces / "boots"
        return [fleet(boots, seed, backup=scan) for scan in (False, True) for seed in seeds]
    return [read_requests(path) for path in sorted(options.traces.glob("*.npz"))]


@dataclass(frozen=True, slots=True)
class Found:
    """What one replay showed against LRU and Belady's MIN."""

    gap_closed: float
    points: float
    """Of miss ratio, fewer than LRU."""
    us: float


Case = tuple[Requests, int, str, list[str], int]


def tables(traces: list[Requests], options: argparse.Namespace, sizes: list[str]) -> list[Table]:
    """Return one table of all cases and one of means."""
    names = [name for name in options.policies.split(",") if name != "lru"]
    each = Table("Gap closed, %", ("trace, chunk, cache", *names, "ml us/access"))
    all_found: dict[tuple[str, str], list[Found]] = {}
    cases = [(t, c, s, names, options.seeds) for t in traces for c in CHUNK_SIZES for s in sizes]
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        for case, found in zip(cases, pool.map(one_case, cases), strict=True):
            requests, chunk_bytes, size = case[:3]
            for name, replays in found.items():
                all_found.setdefault((name, size), []).extend(replays)
            cells = [f"{statistics.mean(f.gap_closed for f in found[name]):.1f}" for name in names]
            us = [f"{statistics.mean(f.us for f in found['ml']):.1f}" if "ml" in found else ""]
            each.add(f"{requests.name} {chunk_bytes // KIB}K {size}", *cells, *us)
            print(each.rows[-1], file=sys.stderr, flush=True)
    means = Table(
        "Gap closed, %: mean (worst; and the worst in points of miss ratio against LRU)",
        ("policy", *sizes),
    )
    for name in names:
        means.add(name, *(summary(all_found[name, size]) for size in sizes))
    if options.lib:
        for name, gaps_by_size in their_gaps(traces, sizes):
            cells = [f"{statistics.mean(g):.1f} ({min(g):.0f})" for g in gaps_by_size]
            means.add(f"libCacheSim {name}", *cells)
    return [each, means]


def summary(found: list[Found]) -> str:
    """Return mean and worst of what replays showed."""
    mean = statistics.mean(each.gap_closed for each in found)
    worst, points = min(f.gap_closed for f in found), min(f.points for f in found)
    return f"{mean:.1f} ({worst:.0f}; {points:+.2f})"


def one_case(case: Case) -> dict[str, list[Found]]:
    """Return what each policy does, once for each seed for `ml`."""
    requests, chunk_bytes, text, names, seeds = case
    size = parse_cache_size(text)
    lru, best = (run_one(requests, Run(chunk_bytes, size, name)) for name in ("lru", "min"))
    found: dict[str, list[Found]] = {}
    for name in names:
        for seed in range(seeds if name == "ml" else 1):
            result = run_one(requests, Run(chunk_bytes, size, name, seed))
            gap = gap_closed(lru.outcome, result.outcome, best.outcome)
            points = 100 * (lru.outcome.miss_ratio - result.outcome.miss_ratio)
            found.setdefault(name, []).append(Found(gap, points, result.us_per_access))
    return found


def their_gaps(traces: list[Requests], sizes: list[str]) -> Iterator[tuple[str, list[list[float]]]]:
    """Yield what each policy of libCacheSim closes, by size; those that do not run are left out."""
    import libcachesim  # noqa: PLC0415 - an extra of the tests

    for name in THEIRS:
        found: list[list[float]] = []
        try:
            for text in sizes:
                found.append([])
                for requests in traces:
                    for chunk_bytes in CHUNK_SIZES:
                        found[-1].append(their_gap(libcachesim, name, requests, chunk_bytes, text))
        except Exception as error:  # noqa: BLE001 - whatever theirs raises: it does not run here
            print(f"libCacheSim's {name} does not run: {error}", file=sys.stderr)
            continue
        yield name, found


def their_gap(lib: Any, name: str, requests: Requests, chunk_bytes: int, text: str) -> float:
    """Return the gap that one of theirs closes in one case, with their LRU and Belady as bounds."""
    accesses = accesses_of(requests, chunk_bytes)
    slots = parse_cache_size(text).slots(accesses)
    cache = getattr(lib, name)(slots)
    request = lib.Request()
    request.obj_size = 1
    misses = 0
    for chunk in accesses.chunks.tolist():
        request.obj_id = chunk + 1
        misses += not cache.get(request)
    size = parse_cache_size(text)
    lru, best = (run_one(requests, Run(chunk_bytes, size, each)) for each in ("lru", "min"))
    gap = lru.outcome.misses - best.outcome.misses
    return 100 * (lru.outcome.misses - misses) / gap if gap else 0.0


def large_table(slots: int = 16_000_000, evictions: int = 200_000) -> Table:
    """Return CPU and memory of each policy over an L1 of 1 TB: hits in batches, then evictions."""
    table = Table(
        f"{slots:,} slots", ("policy", "bytes/slot", "us/hit", "us/eviction", "longest call, ms")
    )
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        for name in POLICIES:
            found = pool.submit(large_one, name, slots, evictions).result()
            table.add(name, *(f"{value:.2f}" for value in found))
            print(table.rows[-1], file=sys.stderr, flush=True)
    return table


def large_one(name: str, slots: int, evictions: int) -> tuple[float, float, float, float]:
    """Measure one policy: in a process of its own, because memory is measured."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    policy = make_policy(name, Ticks())
    policy.grow(slots)
    for begin in range(0, slots, 1 << 20):
        policy.insert_many(np.arange(begin, min(slots, begin + (1 << 20))))
    rng = np.random.default_rng(0)
    batches = [(slots * rng.power(4, 512)).astype(np.int64) for _ in range(1_000)]
    started = time.process_time()
    for batch in batches:
        policy.touch_many(batch)
    us_hit = (time.process_time() - started) * 1e6 / (512 * len(batches))
    longest, key = 0.0, slots
    started = time.process_time()
    for _ in range(0, evictions, 256):
        call = time.perf_counter()
        chosen = policy.evict(256, lambda _: False)
        longest = max(longest, time.perf_counter() - call)
        for slot in chosen:
            key += 1
            policy.insert(slot, Arrival(key, key * SPAN % 2**40, SPAN))
    us_eviction = (time.process_time() - started) * 1e6 / evictions
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return grown * 1024 / slots, us_hit, us_eviction, longest * 1e3


if __name__ == "__main__":
    main()
