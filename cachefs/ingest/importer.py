"""Import: a source becomes a version of an image.

    source -> batches -> threads: zero? hash, known? compress -> packing, in image order
           -> packs -> manifest -> image record

The calling thread reads and assembles; batches and packs in flight are bounded, and so is memory.
The record is written last, so an import that is killed leaves only packs that nobody names, and the
next import of the same data finds them in the catalog.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cachefs.codec.compression import Compression
from cachefs.errors import ConflictError
from cachefs.ingest.catalog import Catalog, open_catalog
from cachefs.ingest.encode import EncodedBatch, encode_batch
from cachefs.ingest.packing import Packing
from cachefs.ingest.publish import check_name_is_free, publish_version
from cachefs.ingest.refresh import refresh_catalog
from cachefs.ingest.report import ImportReport
from cachefs.ingest.source import BATCH_BYTES, Batch, Source
from cachefs.ingest.table import RecordTable
from cachefs.model.chunk import check_chunk_bytes
from cachefs.model.image import ImageVersion, check_labels
from cachefs.store.store import Store
from cachefs.units import KIB

DEFAULT_CHUNK_BYTES = 64 * KIB

OnProgress = Callable[[ImportReport], None]


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """How to import. `threads`: that hash and compress."""

    catalog_folder: Path
    chunk_bytes: int = DEFAULT_CHUNK_BYTES
    compression: Compression = field(default_factory=Compression)
    labels: Mapping[str, str] = field(default_factory=dict)
    threads: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))


def import_image(
    store: Store,
    source: Source,
    name: str,
    options: ImportOptions,
    on_progress: OnProgress = lambda _: None,
) -> ImportReport:
    """Import a source as the newest version of the image `name`, and return what was done.

    Args:
        store: Where to.
        source: Where from.
        name: Of the image; new, or one that gets a new version.
        options: How.
        on_progress: Is called now and then with the figures so far.

    Raises:
        ConflictError: the name lies above or below another image's, the source changed while it was
            read, or packs were removed from the store meanwhile.
        StoreUnavailableError: the store does not take or give objects.
        UsageError: the name, a label or the chunk size cannot be.
    """
    check_chunk_bytes(options.chunk_bytes)
    check_labels(options.labels)
    check_name_is_free(store, name)
    begun_s = time.monotonic()
    report = ImportReport(name, options.chunk_bytes)
    with open_catalog(options.catalog_folder, store.identity) as catalog:
        refresh_catalog(catalog, store)
        run = _Import(store, catalog, source, options, report)
        version = run.run(on_progress)
    published = publish_version(store, name, version)
    report.version, report.manifest = published.number, published.manifest
    report.stored_bytes = published.stored_bytes
    report.duration_s = time.monotonic() - begun_s
    return report


class _Import:
    """One import: what its threads share, and the assembly of what they encode."""

    def __init__(
        self,
        store: Store,
        catalog: Catalog,
        source: Source,
        options: ImportOptions,
        report: ImportReport,
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._source = source
        self._options = options
        self._report = report
        self._packing = Packing(store, catalog)
        self._table = RecordTable()
        self._free_buffers: list[memoryview] = []

    def run(self, on_progress: OnProgress) -> ImageVersion:
        try:
            for encoded in self._encoded_batches():
                self._assemble(encoded)
                self._free_buffers.append(encoded.batch.buffer)
                on_progress(self._report)
            self._packing.finish()
        finally:
            self._packing.close()
        return self._version()

    def _encoded_batches(self) -> Iterator[EncodedBatch]:
        """Yield the batches in order; while one is assembled, the threads work on the next ones."""
        options = self._options
        workers = ThreadPoolExecutor(options.threads, "encode")
        waiting: deque[Future[EncodedBatch]] = deque()
        try:
            for batch in self._source.batches(options.chunk_bytes, self._take_buffer):
                waiting.append(workers.submit(self._encode, batch))
                if len(waiting) > options.threads * 2:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            workers.shutdown(cancel_futures=True)

    def _take_buffer(self) -> memoryview:
        """Return a buffer; there are never more than batches in flight and one that is filled."""
        return (
            self._free_buffers.pop() if self._free_buffers else memoryview(bytearray(BATCH_BYTES))
        )

    def _encode(self, batch: Batch) -> EncodedBatch:
        options = self._options
        return encode_batch(
            batch,
            options.chunk_bytes,
            options.compression,
            self._catalog.find,
            self._packing.in_hand,
        )

    def _assemble(self, encoded: EncodedBatch) -> None:
        packing, report = self._packing, self._report
        packing.settle()
        unknown = [
            chunk_id
            for chunk_id in encoded.ids
            if chunk_id not in encoded.places and chunk_id not in packing.in_hand
        ]
        places = encoded.places | self._catalog.find(unknown)
        rows = []
        for position, chunk_id in zip(encoded.positions, encoded.ids, strict=True):
            plain_bytes = len(encoded.plain(position))
            place = places.get(chunk_id)
            if place:
                location = (packing.number_of(place.pack), place.offset, place.frame_bytes)
                report.duplicate_bytes += plain_bytes
            elif chunk_id in packing.in_hand:
                location = packing.in_hand[chunk_id]
                report.duplicate_bytes += plain_bytes
            else:
                frame = encoded.frames.get(chunk_id)
                if frame is None:  # it was in hand or in the catalog, and the catalog failed since
                    frame = self._options.compression.encode(encoded.plain(position))
                location = packing.add(chunk_id, frame, plain_bytes)
                report.new_bytes += plain_bytes
                report.new_stored_bytes += len(frame)
            rows.append((chunk_id, *location))
        batch = encoded.batch
        data_bytes = sum(len(encoded.plain(position)) for position in encoded.positions)
        report.zero_bytes += batch.hole_bytes + batch.size_bytes - data_bytes
        report.hole_bytes += batch.hole_bytes
        self._table.append(batch.indexes[encoded.positions], rows)

    def _version(self) -> ImageVersion:
        """Store the manifest, now that all its packs are there."""
        store, source, packing = self._store, self._source, self._packing
        size_bytes, chunk_bytes = source.size_bytes, self._options.chunk_bytes
        assert size_bytes is not None, "a source that has ended knows its size"
        self._report.size_bytes = size_bytes
        self._report.packs_written = packing.packs_written
        if set(packing.packs) - set(store.pack_ids()):
            raise ConflictError(
                f"packs of {store.url} were removed while '{self._report.name}' was imported: "
                "import it again"
            )
        return ImageVersion(
            number=0,
            manifest=store.put_manifest(
                self._table.manifest(size_bytes, chunk_bytes, packing.packs)
            ),
            size_bytes=size_bytes,
            chunk_bytes=chunk_bytes,
            data_bytes=self._report.data_bytes,
            stored_bytes=self._table.stored_bytes(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            labels=dict(self._options.labels),
        )
