"""How the prefetcher of a daemon is put together."""

from __future__ import annotations

from collections.abc import Callable

from cachefs.config import Config
from cachefs.index.manifest_table import ManifestTable
from cachefs.prefetch.gather import Limits
from cachefs.prefetch.prefetcher import Prefetcher
from cachefs.tiers.accesses import Accesses
from cachefs.tiers.l1 import L1
from cachefs.tiers.pool import FetcherPool
from cachefs.tiers.stack import MOST_JOB_BYTES, Stack
from cachefs.units import MIB

_LOCAL_PLACES = 2
"""Jobs ahead that a fetcher of a local store has: one that it does, and the next, which it leaves
aside when somebody needs another."""

_MOST_PLAIN_BYTES = 32 * MIB
"""Chunks of one job from S3: frames of 8 MiB may be far more than that as chunks."""


def ahead_places(config: Config) -> int:
    """Return how many jobs ahead of demand one fetcher may have at once."""
    is_on_s3 = config.store.url.startswith("s3://")
    return config.prefetch.requests if is_on_s3 else _LOCAL_PLACES


def make_prefetcher(
    config: Config,
    l1: L1,
    stack: Stack,
    pool: FetcherPool,
    table_of: Callable[[int], ManifestTable | None],
    accesses: Accesses,
) -> Prefetcher | None:
    """Return the prefetcher that the configuration wants, None if it wants none."""
    settings = config.prefetch
    if not settings.enabled:
        return None
    is_on_s3 = config.store.url.startswith("s3://")
    limits = Limits(settings.request_bytes, _MOST_PLAIN_BYTES if is_on_s3 else MOST_JOB_BYTES)
    places = pool.count * pool.ahead_places
    prefetcher = Prefetcher(
        settings, l1, stack, l1.metrics, places, limits, table_of, accesses.digest
    )
    accesses.observers.append(prefetcher.observe)
    return prefetcher
