"""Whatever is read, evicted, dropped, restarted or flipped: the bytes are those of the image."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from cachefs.daemon.cache import Cache
from cachefs.index.manifest_table import ManifestTable
from cachefs.index.segments import INDEX_MASK, slot_class
from cachefs.reader import MAX_READ_BYTES, Reader
from cachefs.store.store import Store
from cachefs.tiers.fetcher import Fetcher
from cachefs.tiers.stack import Stack
from cachefs.units import KIB, MIB
from tests.caches import PromptPool, opened_cache, table_of
from tests.stores import import_bytes, new_store

STEPS_PER_RUN = 12


@dataclass(frozen=True)
class Example:
    """Images, and what happens to them."""

    images: tuple[tuple[int, bytes], ...]
    """Chunk size and plain bytes of each."""
    seed: int
    quota_bytes: int
    verify_reads: bool
    runs: int


@st.composite
def image_bytes(draw: st.DrawFn) -> tuple[int, bytes]:
    """Make an image of blocks that are zero, equal to others, or their own, with a short end."""
    chunk_bytes = draw(st.sampled_from([4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB]))
    kinds = draw(st.lists(st.sampled_from("0aabcdefgh"), min_size=1, max_size=24))
    block_bytes = draw(st.sampled_from([4 * KIB, chunk_bytes]))
    blocks = [
        bytes(block_bytes) if kind == "0" else Random(kind).randbytes(block_bytes) for kind in kinds
    ]
    end = draw(st.integers(0, block_bytes - 1))
    return chunk_bytes, b"".join(blocks)[: len(kinds) * block_bytes - end]


examples = st.builds(
    Example,
    st.lists(image_bytes(), min_size=1, max_size=3).map(tuple),
    st.integers(0, 2**32),
    st.sampled_from([MIB, 2 * MIB, 16 * MIB]),
    st.booleans(),
    st.integers(1, 2),
)


@settings(max_examples=40)
@given(examples)
def test_every_read_gives_the_plain_bytes(example: Example) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        store = new_store(folder)
        for number, (chunk_bytes, data) in enumerate(example.images):
            import_bytes(store, data, f"image-{number}", chunk_bytes)
        chosen = Random(example.seed)
        for _ in range(example.runs):
            clean = chosen.random() < 0.5
            with opened_cache(folder / "cache", example.quota_bytes, clean=clean) as cache:
                trio.run(_run, example, store, cache, folder, chosen)
                _check_end(cache)


async def _run(example: Example, store: Store, cache: Cache, folder: Path, chosen: Random) -> None:
    with _tables(example, store, folder) as tables:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cache.keeper.run)
            pool = PromptPool(Fetcher(store.url, store.identity))
            stack = Stack(cache.l1, pool, nursery, cache.l1.metrics)
            reader = Reader(
                cache.l1, stack, cache.l1.metrics, 30, verify_reads=example.verify_reads
            )
            for _ in range(STEPS_PER_RUN):
                action = chosen.random()
                if action < 0.15:
                    _drop_some(cache, tables, chosen)
                elif action < 0.3 and example.verify_reads:
                    _flip_some(cache, tables, chosen)
                else:
                    async with trio.open_nursery() as readers:
                        for _ in range(chosen.randrange(1, 5)):
                            readers.start_soon(_read, example, reader, tables, chosen)
            nursery.cancel_scope.cancel()


async def _read(
    example: Example, reader: Reader, tables: list[ManifestTable], chosen: Random
) -> None:
    number = chosen.randrange(len(tables))
    _, data = example.images[number]
    offset = chosen.randrange(len(data) + 5000)
    size_bytes = chosen.choice(
        [0, 1, 4096, 65536, MAX_READ_BYTES, chosen.randrange(MAX_READ_BYTES)]
    )
    expected = data[offset : offset + size_bytes]
    hit = reader.read_hit(tables[number], offset, size_bytes)
    if hit is not None:
        assert hit == expected
    found = await reader.read(tables[number], offset, size_bytes)
    assert found == expected


@contextmanager
def _tables(example: Example, store: Store, folder: Path) -> Iterator[list[ManifestTable]]:
    tables = [table_of(store, folder, f"image-{number}") for number in range(len(example.images))]
    yield tables
    for table in tables:
        table.close()


def _resident(cache: Cache, tables: list[ManifestTable]) -> list[tuple[bytes, int]]:
    ids = sorted({chunk_id for table in tables for chunk_id in table.ids()})
    found = ((chunk_id, cache.l1.find(chunk_id)) for chunk_id in ids)
    return [(chunk_id, place.slot) for chunk_id, place in found if place is not None]


def _drop_some(cache: Cache, tables: list[ManifestTable], chosen: Random) -> None:
    for chunk_id, slot in _resident(cache, tables):
        if chosen.random() < 0.4:
            cache.l1.drop(chunk_id, slot)


def _flip_some(cache: Cache, tables: list[ManifestTable], chosen: Random) -> None:
    for chunk_id, slot in _resident(cache, tables):
        placement = cache.l1.find(chunk_id)
        if placement is not None and chosen.random() < 0.4:
            segment = cache.l1.classes[slot_class(slot)].segment
            at = (slot & INDEX_MASK) * segment.slot_bytes + chosen.randrange(placement.plain_bytes)
            byte = os.pread(segment.fd, 1, at)[0]
            os.pwrite(segment.fd, bytes([byte ^ 1 << chosen.randrange(8)]), at)


def _check_end(cache: Cache) -> None:
    """Check what holds whenever nobody reads: gauges at zero, and every slot accounted for."""
    metrics = cache.l1.metrics
    assert (metrics.waiting_reads, metrics.flights, metrics.pinned_slots) == (0, 0, 0)
    assert metrics.read_errors == 0
    assert cache.l1.allocated_bytes <= cache.l1.quota_bytes
    for slots in cache.l1.classes.values():
        assert not slots.filling
        assert not slots.pins
        assert len(set(slots.free)) == len(slots.free)
        held = {slot for slot in slots.free if cache.l1.residency.chunk_in(slot) is not None}
        assert not held
