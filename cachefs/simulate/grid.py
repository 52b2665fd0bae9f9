"""Many replays: each chunk size, cache size and policy of a recording, in several processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context

from cachefs.errors import CachefsError, UsageError
from cachefs.policy.evict.names import POLICIES, make_policy
from cachefs.policy.evict.order import Ticks
from cachefs.simulate.accesses import Accesses, Requests, accesses_of
from cachefs.simulate.replay import Outcome, belady, gap_closed, replay
from cachefs.units import format_size, parse_size

MIN = "min"
"""Belady's MIN, among the names of policies."""


@dataclass(frozen=True, slots=True)
class Size:
    """How large L1 is: a share of the distinct chunks, or bytes."""

    text: str
    share: float = 0.0
    size_bytes: int = 0

    def slots(self, accesses: Accesses) -> int:
        """Return how many slots that is, at least one."""
        if self.size_bytes:
            return max(1, self.size_bytes // accesses.chunk_bytes)
        return max(1, int(accesses.distinct * self.share))


def parse_cache_size(text: str) -> Size:
    """Return a size from `10%`, of all distinct chunks, or `4GiB`.

    Raises:
        UsageError: it is neither.
    """
    if not text.endswith("%"):
        return Size(text, size_bytes=parse_size(text))
    try:
        share = float(text[:-1]) / 100
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise UsageError(f"'{text}' is no share of the chunks: write it as in 10%")
    return Size(text, share=share)


@dataclass(frozen=True, slots=True)
class Run:
    """One replay to make."""

    chunk_bytes: int
    size: Size
    policy: str
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Result:
    """One replay that was made."""

    run: Run
    slots: int
    outcome: Outcome
    cpu_s: float

    @property
    def us_per_access(self) -> float:
        """CPU of the policy and of the replay itself, for each access."""
        return self.cpu_s / self.outcome.accesses * 1e6


def plan(
    chunk_sizes: Sequence[int], sizes: Sequence[Size], policies: Sequence[str], seed: int = 0
) -> list[Run]:
    """Return the replays that compare policies: LRU and MIN are always among them."""
    names = list(dict.fromkeys(["lru", *policies, MIN]))
    for name in names:
        if name not in (*POLICIES, MIN):
            raise UsageError(f"no policy '{name}': there are {', '.join(POLICIES)}")
    return [
        Run(chunk_bytes, size, name, seed)
        for chunk_bytes in chunk_sizes
        for size in sizes
        for name in names
    ]


def run_all(
    requests: Requests,
    runs: Sequence[Run],
    jobs: int,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> list[Result]:
    """Return the results of all replays, in their order; `progress` counts those that are done.

    Raises:
        CachefsError: one of the processes was killed.
    """
    if jobs == 1:
        results = []
        for done, run in enumerate(runs):
            progress(done, len(runs))
            results.append(run_one(requests, run))
        progress(len(runs), len(runs))
        return results
    found: dict[int, Result] = {}
    try:
        # Spawned, not forked: whoever calls may have threads.
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            futures = {pool.submit(run_one, requests, run): at for at, run in enumerate(runs)}
            for future in as_completed(futures):
                found[futures[future]] = future.result()
                progress(len(found), len(runs))
    except BrokenProcessPool as error:
        raise CachefsError("a process of the simulation was killed: is memory short?") from error
    return [found[at] for at in range(len(runs))]


def run_one(requests: Requests, run: Run) -> Result:
    """Make one replay."""
    accesses = accesses_of(requests, run.chunk_bytes)
    slots = run.size.slots(accesses)
    started_s = time.process_time()
    if run.policy == MIN:
        outcome = belady(accesses, slots)
    else:
        outcome = replay(accesses, slots, make_policy(run.policy, Ticks(), run.seed))
    return Result(run, slots, outcome, time.process_time() - started_s)


def gaps(results: Sequence[Result]) -> list[float]:
    """Return the gap closed, in percent, for each result: LRU is 0, MIN is 100."""
    bounds = {
        (r.run.chunk_bytes, r.run.size, r.run.policy): r.outcome
        for r in results
        if r.run.policy in ("lru", MIN)
    }
    return [
        gap_closed(
            bounds[r.run.chunk_bytes, r.run.size, "lru"],
            r.outcome,
            bounds[r.run.chunk_bytes, r.run.size, MIN],
        )
        for r in results
    ]


def describe(result: Result, gap: float) -> dict[str, object]:
    """Return a result as JSON knows it."""
    return {
        "chunk_bytes": result.run.chunk_bytes,
        "size": result.run.size.text,
        "slots": result.slots,
        "policy": result.run.policy,
        "accesses": result.outcome.accesses,
        "misses": result.outcome.misses,
        "miss_ratio": result.outcome.miss_ratio,
        "gap_closed_percent": gap,
        "us_per_access": result.us_per_access,
    }


def row_of(result: Result, gap: float) -> tuple[str, ...]:
    """Return a result as a row for people."""
    return (
        format_size(result.run.chunk_bytes),
        result.run.size.text,
        str(result.slots),
        result.run.policy,
        f"{100 * result.outcome.miss_ratio:.2f}",
        f"{gap:.1f}",
        "" if result.run.policy == MIN else f"{result.us_per_access:.1f}",
    )


ROW_HEADINGS = ("CHUNK>", "CACHE>", "SLOTS>", "POLICY", "MISSES %>", "GAP CLOSED %>", "US/ACCESS>")
"""The headings of what `row_of` returns."""
