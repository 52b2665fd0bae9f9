"""Brings the catalog up to date with the store: reads new packs' indexes, forgets packs gone."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from cachefs.errors import CorruptError, FormatError, ObjectMissingError
from cachefs.ingest.catalog import Catalog, PackContent
from cachefs.store.store import Store

_INDEX_READERS = 8
"""Over S3 a read of an index is one round trip; the processor has little to do."""
_PACKS_PER_COMMIT = 64

_log = logging.getLogger(__name__)


def refresh_catalog(catalog: Catalog, store: Store) -> int:
    """Make the catalog know the packs that the store has now, and no other; returns how many.

    Raises:
        StoreUnavailableError: the store cannot be listed or read; the catalog is as it was.
    """
    # In this order: a pack that another import adds meanwhile is in the list or not yet known.
    known = catalog.packs()
    listed = set(store.pack_ids())
    if known - listed:
        catalog.forget(known - listed)
        known = catalog.packs()
    _log.debug("%d packs in %s, %d of them new", len(listed), store.url, len(listed - known))
    with ThreadPoolExecutor(_INDEX_READERS, "index") as readers:
        contents = _contents(store, readers, sorted(listed - known))
        while some := list(islice(contents, _PACKS_PER_COMMIT)):
            catalog.add(some)
    return len(listed)


def _contents(
    store: Store, readers: ThreadPoolExecutor, packs: list[bytes]
) -> Iterator[PackContent]:
    for first in range(0, len(packs), _PACKS_PER_COMMIT):
        some = packs[first : first + _PACKS_PER_COMMIT]
        for content in readers.map(lambda pack: _content(store, pack), some):
            if content:
                yield content


def _content(store: Store, pack: bytes) -> PackContent | None:
    try:
        index = store.pack_index(pack)
    except ObjectMissingError:
        return None  # removed since it was listed
    except (CorruptError, FormatError) as error:
        _log.warning("not building on what is damaged: %s; see 'cachefs verify'", error)
        return None
    return PackContent(pack, [(row[0], row[1], row[2]) for row in index.tolist()])
