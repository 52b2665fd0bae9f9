"""What `cachefs status` and the extended attributes tell."""

from __future__ import annotations

import os
import resource
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import trio

from cachefs import __version__
from cachefs.daemon.cache import Cache
from cachefs.daemon.listing import ListingTask
from cachefs.metrics import Metrics
from cachefs.tiers.l1 import L1
from cachefs.tiers.pool import FetcherPool
from cachefs.tiers.tables import Tables
from cachefs.vfs import FileNode, Vfs

_TABLE_WAIT_S = 10.0


def describe(
    store_url: str,
    vfs: Vfs,
    cache: Cache,
    pool: FetcherPool,
    listing: ListingTask,
    metrics: Metrics,
) -> dict[str, Any]:
    """Return the state of a daemon, for people and programs."""
    l1 = cache.l1
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "version": __version__,
        "pid": os.getpid(),
        "store": {
            "url": store_url,
            "error": listing.last_error,
            "images": len(vfs.tree.files()),
            "hidden": vfs.tree.hidden,
        },
        "l1": {
            "dir": str(l1.folder.path),
            "quota_bytes": l1.quota_bytes,
            "allocated_bytes": l1.allocated_bytes,
            "resident_bytes": l1.resident_bytes,
            "resident_chunks": l1.resident_chunks,
            "slots": sum(slots.total for slots in l1.classes.values()),
            "free_slots": sum(len(slots.free) for slots in l1.classes.values()),
            "policy": cache.policy,
            "suspect": l1.epoch.suspect_before > 0,
        },
        "l2": pool.l2.describe(),
        "fetchers": {"pids": sorted(pool.pids), "queued_jobs": pool.queued},
        "metrics": metrics.to_dict(),
        "max_rss_bytes": usage.ru_maxrss * 1024,
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 2),
    }


def xattrs(l1: L1, tables: Tables) -> dict[str, Callable[[FileNode], Awaitable[bytes]]]:
    """Return the extended attributes of an image and who answers them."""

    async def version(node: FileNode) -> bytes:
        return str(node.version.number).encode()

    async def stored_bytes(node: FileNode) -> bytes:
        return str(node.version.stored_bytes).encode()

    async def chunk_size(node: FileNode) -> bytes:
        return str(node.version.chunk_bytes).encode()

    async def resident_bytes(node: FileNode) -> bytes:
        table = await tables.get(node.version.manifest, trio.current_time() + _TABLE_WAIT_S)
        count = partial(l1.residency.count_resident, table.ids)
        return str(await trio.to_thread.run_sync(count)).encode()

    return {
        "user.cachefs.version": version,
        "user.cachefs.resident_bytes": resident_bytes,
        "user.cachefs.stored_bytes": stored_bytes,
        "user.cachefs.chunk_size": chunk_size,
    }
