"""What each feature of `ml` is worth: the gap closed without it, its value being set to zero.

Some features say nothing on recordings of one disk: what it takes to fetch a chunk again, how well
it is compressed, whether it was prefetched. They are left out of the table.
"""

import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from bench.table import Table
from cachefs.policy.evict.ml.learned import Learned
from cachefs.policy.evict.ml.memory import FEATURES, Features, Memory
from cachefs.policy.evict.ml.models import Logistic, Trees
from cachefs.policy.evict.order import Ticks
from cachefs.simulate.accesses import Accesses, Requests, accesses_of
from cachefs.simulate.grid import MIN, Run, parse_cache_size, run_one
from cachefs.simulate.replay import Outcome, gap_closed, replay

SEEDS = 3
"""Of the whole model: how far they lie apart is how much of a difference means nothing."""

CONSTANT = ("frame share", "cost", "prefetched, unused")
"""On recordings."""

PLANNED = ("recency", "frequency, short", "frequency, long", "uses", "distance to the last use")
"""What is left, on recordings, of what was planned at first: recency, frequency, size, access
pattern, time of day, tier, compression ratio, reference count. See docs/decisions/0070."""

GROUPS = {
    "all gaps": ("gap 1", "gap 2", "gap 3", "gaps together"),
    "all frequencies": ("frequency, short", "frequency, long", "uses"),
    "both neighbours": (
        "recency of the chunk before",
        "recency of the chunk behind",
        "wait since the chunk before",
    ),
    "the region": ("recency of the region", "frequency of the region"),
}
"""What one feature of a group knows, the others know nearly as well."""


@dataclass(frozen=True, slots=True)
class Variant:
    """A policy that learns, without some features or by another model."""

    name: str
    without: tuple[str, ...] = ()
    kind: type[Trees | Logistic] = Trees
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Case:
    """Accesses, an L1, and what LRU and Belady's MIN miss there."""

    accesses: Accesses
    slots: int
    lru: Outcome
    best: Outcome


def variants() -> Iterator[Variant]:
    """Yield all that is measured."""
    for seed in range(SEEDS):
        yield Variant(f"nothing, seed {seed}", seed=seed)
    yield from (Variant(name, (name,)) for name in FEATURES if name not in CONSTANT)
    yield from (Variant(name, members) for name, members in GROUPS.items())
    others = tuple(name for name in FEATURES if name not in PLANNED)
    yield Variant("all but recency, frequencies and distance", others)
    yield Variant("trees: logistic regression", kind=Logistic)


def ablation_table(
    traces: Sequence[Requests], chunk_sizes: Sequence[int], sizes: list[str]
) -> Table:
    """Return the mean gap closed by each variant, by size of L1."""
    cases = {
        size: [case_of(trace, chunk, size) for trace in traces for chunk in chunk_sizes]
        for size in sizes
    }
    table = Table("Mean gap closed by ml without a feature, %", ("without", *sizes))
    for variant in variants():
        gaps = [statistics.mean(gap_of(variant, case) for case in cases[size]) for size in sizes]
        table.add(variant.name, *(f"{gap:.1f}" for gap in gaps))
        print(table.rows[-1], file=sys.stderr, flush=True)
    return table


def case_of(requests: Requests, chunk_bytes: int, size: str) -> Case:
    """Return a case with its bounds."""
    share = parse_cache_size(size)
    lru, best = (run_one(requests, Run(chunk_bytes, share, name)) for name in ("lru", MIN))
    accesses = accesses_of(requests, chunk_bytes)
    return Case(accesses, share.slots(accesses), lru.outcome, best.outcome)


def gap_of(variant: Variant, case: Case) -> float:
    """Return what a variant closes in a case."""
    with zeroed(variant.without):
        policy = Learned(Ticks(), variant.seed, variant.kind, most_slots=0)
        found = replay(case.accesses, case.slots, policy)
    return gap_closed(case.lru, found, case.best)


@contextmanager
def zeroed(names: Sequence[str]) -> Iterator[None]:
    """Let no model know these features, whether it is trained or scores."""
    whole, columns = Memory.features, [FEATURES.index(name) for name in names]

    def features(self: Memory, slots: Any) -> Features:
        found = whole(self, slots)
        found[:, columns] = 0
        return found

    Memory.features = features  # type: ignore[method-assign]
    try:
        yield
    finally:
        Memory.features = whole  # type: ignore[method-assign]
