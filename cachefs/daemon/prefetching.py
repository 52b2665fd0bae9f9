"""How the prefetcher of a daemon is put together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cachefs.config import Config
from cachefs.errors import CachefsError
from cachefs.index.database import Database
from cachefs.index.manifest_table import ManifestTable
from cachefs.index.profiles import ProfileRows
from cachefs.policy.prefetch.arms import learning_arms
from cachefs.policy.prefetch.ledger import End
from cachefs.policy.prefetch.lstm import Weights
from cachefs.policy.prefetch.pace import Pace
from cachefs.prefetch.early import EarlyProfiles
from cachefs.prefetch.gather import Limits
from cachefs.prefetch.jobs import AheadJobs
from cachefs.prefetch.prefetcher import Prefetcher
from cachefs.prefetch.profiles import Profiles
from cachefs.prefetch.sharing import ProfileSharing
from cachefs.tiers.accesses import Accesses
from cachefs.tiers.l1 import L1
from cachefs.tiers.pool import FetcherPool
from cachefs.tiers.stack import MOST_JOB_BYTES, Stack
from cachefs.units import MIB
from cachefs.vfs import FileNode, Vfs

logger = logging.getLogger(__name__)

_LOCAL_PLACES = 2
"""Jobs ahead that a fetcher of a local store has: one that it does, and the next, which it leaves
aside when somebody needs another."""

_MOST_PLAIN_BYTES = 32 * MIB
"""Chunks of one job from S3: frames of 8 MiB may be far more than that as chunks."""

_MOST_LARGE_REQUESTS = 4
"""So many of the longest fill the link; what demand asks for lies behind their bytes there."""


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
    if is_on_s3:
        limits = Limits(settings.request_bytes, _MOST_PLAIN_BYTES, ranges=1)
    else:
        limits = Limits(settings.request_bytes, MOST_JOB_BYTES)
    places = pool.count * pool.ahead_places
    pace = Pace(places, settings.bytes_per_s)
    jobs = AheadJobs(l1, stack, l1.metrics, pace, _MOST_LARGE_REQUESTS * settings.request_bytes)
    prefetcher = Prefetcher(settings, l1, l1.metrics, jobs, limits, table_of, accesses.digest)
    stack.on_demand = lambda is_miss: prefetcher.wake(is_miss=is_miss)
    for arm in learning_arms(settings.arms, _weights(settings.lstm_weights)):
        prefetcher.add_arm(arm)
    accesses.observers.append(prefetcher.observe)
    return prefetcher


def make_profiles(
    config: Config, prefetcher: Prefetcher, database: Database, pool: FetcherPool, vfs: Vfs
) -> Profiles:
    """Return what keeps, shares and teaches what the arms of a prefetcher learn."""

    def name_of(inode: int) -> str | None:
        node = vfs.known(inode)
        return node.name if isinstance(node, FileNode) else None

    def names() -> list[str]:
        files = vfs.tree.files().values()
        return [name for name, _ in sorted(files, key=lambda file: file[1].created, reverse=True)]

    rows = ProfileRows(database)
    is_shared = config.prefetch.share_profiles
    profiles = Profiles(
        rows,
        ProfileSharing(pool, EarlyProfiles(rows, pool, names)) if is_shared else None,
        prefetcher,
        name_of,
    )
    prefetcher.on_opened = profiles.opened
    prefetcher.on_forgotten = profiles.closed
    return profiles


def _weights(path: str) -> Weights | None:
    """Return the LSTM's weights; a mount without them works as well."""
    if not path:
        return None
    try:
        return Weights.from_bytes(Path(path).read_bytes())
    except (OSError, CachefsError) as error:
        logger.warning("the LSTM is silent: cannot use its weights %s: %s", path, error)
        return None


class ArmMetrics(Collector):
    """What the arms have fetched, and how it ended, as Prometheus metrics with labels.

    Called from another thread: it only reads.
    """

    def __init__(self, prefetcher: Prefetcher) -> None:
        self._prefetcher = prefetcher

    def collect(self) -> Iterator[Metric]:
        """Yield chunks by arm and end, bytes by arm, and each arm's accuracy now."""
        chunks = CounterMetricFamily(
            "cachefs_prefetch_chunks", "Chunks fetched ahead, by their ends", labels=["arm", "end"]
        )
        fetched = CounterMetricFamily(
            "cachefs_prefetch_bytes", "Their bytes, as in the store", labels=["arm"]
        )
        wasted = CounterMetricFamily(
            "cachefs_prefetch_wasted_bytes", "Of these: nobody read them", labels=["arm"]
        )
        accuracy = GaugeMetricFamily(
            "cachefs_prefetch_accuracy", "Share of the last chunks that were read", labels=["arm"]
        )
        for arm, account in list(self._prefetcher.ledger.accounts.items()):
            for end in End:
                chunks.add_metric([arm, end.value], getattr(account, end.value))
            fetched.add_metric([arm], account.fetched_bytes)
            wasted.add_metric([arm], account.wasted_bytes)
            accuracy.add_metric([arm], account.accuracy)
        yield from (chunks, fetched, wasted, accuracy)


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
    budget, pace = prefetcher.budget, prefetcher.jobs.pace
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
