"""Reads the chunks of an image from the store, verified, with several threads, in image order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cachefs.codec.frame import decode_frame
from cachefs.errors import CorruptError, FormatError, NotFoundError, ObjectMissingError
from cachefs.model.chunk import chunk_id
from cachefs.model.image import Image, ImageVersion
from cachefs.model.manifest import Manifest
from cachefs.store.store import Store
from cachefs.units import MIB

_READ_BYTES = 4 * MIB
"""Chunks that lie side by side are read at once, up to so many plain bytes."""
_ADVICE = "see 'cachefs verify'"


class PlainRun(NamedTuple):
    """Neighbouring chunks: where they begin in the image, and the bytes of each."""

    offset: int
    plains: list[bytes | memoryview]


def find_version(image: Image, number: int | None) -> ImageVersion:
    """Return a version of an image, the current one for None.

    Raises:
        NotFoundError: it has no such version.
    """
    if number is None:
        return image.current
    for version in image.versions:
        if version.number == number:
            return version
    known = ", ".join(str(version.number) for version in image.versions)
    raise NotFoundError(f"image '{image.name}' has no version {number}: there is {known}")


def read_chunks(store: Store, name: str, manifest: Manifest) -> Iterator[PlainRun]:
    """Yield all chunks of an image that hold data, in order, each checked against its id.

    Raises:
        CorruptError: a chunk is not what its id says.
        StoreUnavailableError: the store does not answer.
    """
    threads = len(os.sched_getaffinity(0)) + 1
    readers = ThreadPoolExecutor(threads, "read")
    waiting: deque[Future[PlainRun]] = deque()
    indexes = manifest.indexes()
    try:
        for first, last in _runs(manifest, indexes):
            read = _Read(store, name, manifest, first, last, int(indexes[first]))
            waiting.append(readers.submit(read.plain_run))
            if len(waiting) > threads * 2:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        readers.shutdown(cancel_futures=True)


def _runs(manifest: Manifest, indexes: npt.NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
    """Yield first and last record, exclusive, of chunks side by side in image and pack."""
    records = manifest.records
    ends = records["offset"].astype(np.uint64) + records["frame_bytes"]
    apart = (
        (np.diff(indexes) != 1)
        | (np.diff(records["pack"]) != 0)
        | (records["offset"][1:] != ends[:-1])
    )
    edges = [0, *(np.flatnonzero(apart) + 1).tolist(), len(records)]
    count = max(1, _READ_BYTES // manifest.chunk_bytes)
    for begin, end in pairwise(edges):
        for first in range(begin, end, count):
            yield first, min(first + count, end)


@dataclass(frozen=True, slots=True)
class _Read:
    """One read from a pack: records `first` to `last`, exclusive, whose chunks begin at `index`."""

    store: Store
    name: str
    manifest: Manifest
    first: int
    last: int
    index: int

    def plain_run(self) -> PlainRun:
        rows: list[tuple[bytes, int, int, int]] = self.manifest.records[
            self.first : self.last
        ].tolist()
        pack = self.manifest.packs[rows[0][1]]
        begin = rows[0][2]
        try:
            data = self.store.frames(pack, begin, rows[-1][2] + rows[-1][3] - begin)
        except (CorruptError, ObjectMissingError) as error:
            raise CorruptError(f"image '{self.name}' cannot be read: {error}; {_ADVICE}") from error
        view = memoryview(data)
        plains = []
        for position, (identity, _, offset, frame_bytes) in enumerate(rows):
            frame = view[offset - begin : offset - begin + frame_bytes]
            plains.append(self._plain(self.index + position, identity, pack, frame))
        return PlainRun(self.index * self.manifest.chunk_bytes, plains)

    def _plain(
        self, index: int, identity: bytes, pack: bytes, frame: memoryview
    ) -> bytes | memoryview:
        try:
            plain = decode_frame(frame, self.manifest.plain_bytes(index))
            if chunk_id(plain) != identity:
                raise CorruptError("its bytes do not match its id")
        except (CorruptError, FormatError) as error:
            raise type(error)(
                f"chunk {index} of image '{self.name}' in pack {pack.hex()[:16]} is damaged: "
                f"{error}; {_ADVICE}"
            ) from error
        return plain
