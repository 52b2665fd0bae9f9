"""The policies by name."""

from __future__ import annotations

from collections.abc import Callable

from cachefs.policy.evict.arc import Arc
from cachefs.policy.evict.lfu import Lfu
from cachefs.policy.evict.lru import Lru
from cachefs.policy.evict.ml.learned import Learned
from cachefs.policy.evict.order import Ticks
from cachefs.policy.evict.s3fifo import S3Fifo
from cachefs.policy.evict.sieve import Sieve
from cachefs.policy.evict.twoq import TwoQ

STATIC: dict[str, Callable[[Ticks], Lru]] = {
    "lru": Lru,
    "lfu": Lfu,
    "arc": Arc,
    "s3fifo": S3Fifo,
    "sieve": Sieve,
    "2q": TwoQ,
}
"""Those that do not learn, by the names that the configuration knows."""

POLICIES = (*STATIC, "ml")
"""All names."""


def make_policy(name: str, ticks: Ticks, seed: int = 0, most_slots: int = 0) -> Lru:
    """Return a new policy by its name, one of POLICIES; `seed` is for what `ml` draws.

    `most_slots`: as many it may get by and by; `ml` compares policies for a cache of that size.
    """
    if name == "ml":
        return Learned(ticks, seed, most_slots=most_slots)
    return STATIC[name](ticks)
