import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import trio

from cachefs.daemon.cache import Cache
from cachefs.daemon.listing import ListingTask
from cachefs.daemon.status import describe, xattrs
from cachefs.index.names import Names
from cachefs.reader import Reader
from cachefs.store.store import Store
from cachefs.tiers.fetcher import Fetcher
from cachefs.tiers.stack import Stack
from cachefs.tiers.tables import Tables
from cachefs.units import MIB
from cachefs.vfs import FileNode, Vfs
from tests.caches import PromptPool, opened_cache
from tests.stores import CHUNK, import_bytes, new_store

DATA = Random(1).randbytes(2 * CHUNK) * 2 + bytes(CHUNK) + Random(2).randbytes(10)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = new_store(tmp_path)
    import_bytes(store, DATA)
    return store


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    with opened_cache(tmp_path / "cache", 4 * MIB) as cache:
        yield cache


async def test_status_and_attributes_tell_what_is_here(store: Store, cache: Cache) -> None:
    pool = PromptPool(Fetcher(store.url, store.identity))
    vfs, metrics = Vfs(), cache.l1.metrics
    listing = ListingTask(vfs, Names(cache.database), pool, metrics)
    tables = Tables((cache.folder.manifests_path,), pool)
    await listing.refresh()
    [node] = [node for node in vfs.tree.nodes.values() if isinstance(node, FileNode)]
    version = store.image("image")[0].current
    answers = xattrs(cache.l1, tables)
    assert await answers["user.cachefs.version"](node) == b"1"
    assert await answers["user.cachefs.chunk_size"](node) == str(CHUNK).encode()
    assert await answers["user.cachefs.stored_bytes"](node) == str(version.stored_bytes).encode()
    assert await answers["user.cachefs.resident_bytes"](node) == b"0"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cache.keeper.run)
        stack = Stack(cache.l1, pool, nursery, metrics)
        reader = Reader(cache.l1, stack, metrics, 30, verify_reads=False)
        table = await tables.get(version.manifest, trio.current_time() + 30)
        await reader.read(table, 0, len(DATA))
        nursery.cancel_scope.cancel()
    await cache.keeper.commit()
    expected = 2 * CHUNK + 10  # equal chunks once, zeros not at all
    assert await answers["user.cachefs.resident_bytes"](node) == str(expected).encode()
    found = describe(store.url, vfs, cache, pool, listing, metrics)
    assert json.loads(json.dumps(found)) == found
    assert found["store"] == {"url": store.url, "error": None, "images": 1, "hidden": []}
    assert found["l1"]["resident_chunks"] == 3
    assert found["l1"]["policy"] == "lru"
    assert found["l1"]["allocated_bytes"] <= found["l1"]["quota_bytes"] == 4 * MIB
    assert found["metrics"]["l3_chunks"] == 3
    assert found["max_rss_bytes"] > MIB
    tables.close()
