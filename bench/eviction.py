"""Policies on real traces: the gap between LRU and Belady's MIN that each closes.

The traces are no part of the repository: `--traces` names their folder, `../shared/traces` else.
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
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from bench.table import Table, publish
from cachefs.policy.evict.ml.memory import FEATURES, Features, Memory
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
    parser.add_argument("--lib", action="store_true")
    parser.add_argument("--ablation", action="store_true")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    if options.large:
        publish([large_table()], options.markdown)
        return
    traces = [read_requests(path) for path in sorted(options.traces.glob("*.npz"))]
    if not traces:
        sys.exit(f"there are no traces (*.npz) in {options.traces}: name their folder, --traces")
    sizes = options.sizes.split(",")
    if options.ablation:
        publish([ablation_table(traces, sizes)], options.markdown)
        return
    publish(tables(traces, options, sizes), options.markdown)


def tables(traces: list[Requests], options: argparse.Namespace, sizes: list[str]) -> list[Table]:
    """Return one table of all cases and one of means."""
    names = [name for name in options.policies.split(",") if name != "lru"]
    each = Table("Gap closed, %", ("trace, chunk, cache", *names, "ml us/access"))
    sums: dict[str, dict[str, list[float]]] = {name: {size: [] for size in sizes} for name in names}
    cases = [(t, c, s, names, options.seeds) for t in traces for c in CHUNK_SIZES for s in sizes]
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        for case, (gaps, us) in zip(cases, pool.map(one_case, cases), strict=True):
            requests, chunk_bytes, size = case[:3]
            for name, found in gaps.items():
                sums[name][size] += found
            cells = [f"{statistics.mean(gaps[name]):.1f}" for name in names]
            each.add(f"{requests.name} {chunk_bytes // KIB}K {size}", *cells, f"{us:.1f}")
            print(each.rows[-1], file=sys.stderr, flush=True)
    means = Table("Mean and worst gap closed, %", ("policy", *sizes))
    for name in names:
        cells = [f"{statistics.mean(g):.1f} ({min(g):.0f})" for g in sums[name].values()]
        means.add(name, *cells)
    if options.lib:
        for name, gaps_by_size in their_gaps(traces, sizes):
            cells = [f"{statistics.mean(g):.1f} ({min(g):.0f})" for g in gaps_by_size]
            means.add(f"libCacheSim {name}", *cells)
    return [each, means]


def one_case(
    case: tuple[Requests, int, str, list[str], int],
) -> tuple[dict[str, list[float]], float]:
    """Return the gaps that each policy closes, one a seed for `ml`, and what that takes."""
    requests, chunk_bytes, text, names, seeds = case
    size = parse_cache_size(text)
    lru, best = (run_one(requests, Run(chunk_bytes, size, name)) for name in ("lru", "min"))
    gaps: dict[str, list[float]] = {}
    us: list[float] = []
    for name in names:
        found = [
            run_one(requests, Run(chunk_bytes, size, name, seed))
            for seed in range(seeds if name == "ml" else 1)
        ]
        gaps[name] = [gap_closed(lru.outcome, each.outcome, best.outcome) for each in found]
        us = [each.us_per_access for each in found] if name == "ml" else us
    return gaps, statistics.mean(us) if us else 0.0


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


def ablation_table(traces: list[Requests], sizes: list[str]) -> Table:
    """Return what `ml` closes without each of its features: their value is set to zero."""
    table = Table("Mean gap closed by ml without a feature, %", ("without", *sizes))
    whole = Memory.features
    for at in (None, *range(len(FEATURES))):

        def features(self: Memory, slots: Any, at: int | None = at) -> Features:
            found = whole(self, slots)
            if at is not None:
                found[:, at] = 0
            return found

        Memory.features = features  # type: ignore[method-assign]
        cells = []
        for size in sizes:
            cases = [(t, c, size, ["ml"], 1) for t in traces for c in CHUNK_SIZES]
            cells.append(f"{statistics.mean(one_case(case)[0]['ml'][0] for case in cases):.1f}")
        table.add("nothing" if at is None else FEATURES[at], *cells)
        print(table.rows[-1], file=sys.stderr, flush=True)
    Memory.features = whole  # type: ignore[method-assign]
    return table


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
