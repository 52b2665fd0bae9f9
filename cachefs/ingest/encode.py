"""What the threads of an import do to a batch: find zero and known chunks, hash, compress.

NumPy, BLAKE3 and zstd release the GIL, so several batches are worked on at once.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass

import numpy as np

from cachefs.codec.compression import Compression
from cachefs.ingest.catalog import Place
from cachefs.ingest.source import Batch
from cachefs.model.chunk import chunk_id

FindPlaces = Callable[[Iterable[bytes]], dict[bytes, Place]]


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    """A batch whose chunks are ready to be put into packs.

    `positions`: of the chunks in the batch that are not zero, ascending; `ids`: theirs. `places`:
    those found in the store. `frames`: of the others, but for those that were in hand already.
    """

    batch: Batch
    chunk_bytes: int
    positions: list[int]
    ids: list[bytes]
    places: dict[bytes, Place]
    frames: dict[bytes, bytes]

    def plain(self, position: int) -> memoryview:
        """Return the bytes of a chunk of the batch."""
        return _plain(self.batch, self.chunk_bytes, position)


def encode_batch(
    batch: Batch,
    chunk_bytes: int,
    compression: Compression,
    find: FindPlaces,
    in_hand: Container[bytes],
) -> EncodedBatch:
    """Return the batch with the ids of its chunks, and frames of those that are new.

    Args:
        batch: What to encode.
        chunk_bytes: The size of its chunks.
        compression: How frames are made.
        find: Tells what the store has already.
        in_hand: Chunks that this import has but the store not yet; may change meanwhile.
    """
    count = len(batch.indexes)
    words = np.frombuffer(batch.buffer, np.uint64, count * (chunk_bytes // 8))
    positions: list[int] = np.flatnonzero(
        words.reshape(count, chunk_bytes // 8).any(axis=1)
    ).tolist()
    plains = [_plain(batch, chunk_bytes, position) for position in positions]
    ids = [chunk_id(plain) for plain in plains]
    places = find(ids)
    frames: dict[bytes, bytes] = {}
    for identity, plain in zip(ids, plains, strict=True):
        if identity not in places and identity not in frames and identity not in in_hand:
            frames[identity] = compression.encode(plain)
    return EncodedBatch(batch, chunk_bytes, positions, ids, places, frames)


def _plain(batch: Batch, chunk_bytes: int, position: int) -> memoryview:
    first = position * chunk_bytes
    return batch.buffer[first : min(first + chunk_bytes, batch.size_bytes)]
