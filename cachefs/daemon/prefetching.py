"""How the prefetcher of a daemon is put together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cachefs.config import Config
from cachefs.index.manifest_table import ManifestTable
from cachefs.prefetch.gather import Limits
from cachefs.prefetch.prefetcher import Prefetcher
from cachefs.tiers.accesses import Accesses
from cachefs.tiers.l1 import L1
from cachefs.tiers.pool import FetcherPool
from cachefs.tiers.stack import MOST_JOB_BYTES, Stack
from cachefs.units import MIB
from cachefs.vfs import FileNode, Vfs

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


def pattern_of(prefetcher: Prefetcher | None, inode: int) -> str:
    """Return what the reads of an image look like, as `sequential, steady`."""
    image = prefetcher.images.get(inode) if prefetcher is not None else None
    if prefetcher is None or image is None:
        return "unknown"
    return str(prefetcher.sequential.pattern(image))


def describe_prefetcher(prefetcher: Prefetcher | None, vfs: Vfs) -> dict[str, Any] | None:
    """Return what is fetched ahead and how it ended, None if nothing ever is."""
    if prefetcher is None:
        return None
    misses = prefetcher.misses
    budget, pace = prefetcher.budget, prefetcher.pace
    images = {}
    for image in prefetcher.images.values():
        node = vfs.known(image.inode)
        name = node.name if isinstance(node, FileNode) else str(image.inode)
        images[name] = {
            "pattern": str(prefetcher.sequential.pattern(image)),
            "planned_chunks": image.plan.chunks,
        }
    return {
        "arms": {
            arm: account.to_dict(misses) for arm, account in prefetcher.ledger.accounts.items()
        },
        "budget_bytes": budget.host_bytes,
        "unread_bytes": budget.out_bytes,
        "window_bytes": prefetcher.sequential.ceiling_bytes,
        "requests_at_once": pace.limit,
        "interrupted": pace.is_interrupted,
        "images": images,
    }
