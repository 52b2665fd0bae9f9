"""The policies by name."""

from __future__ import annotations

from collections.abc import Callable

from cachefs.policy.evict.arc import Arc
from cachefs.policy.evict.lfu import Lfu
from cachefs.policy.evict.lru import Lru
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

POLICIES = tuple(STATIC)
"""All names."""


def make_policy(name: str, ticks: Ticks) -> Lru:
    """Return a new policy by its name, one of POLICIES."""
    return STATIC[name](ticks)
