"""The growing table of an image while it is imported; becomes its manifest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cachefs.model.manifest import RECORD_DTYPE, Manifest, runs_of

_FIRST_ROWS = 4096


class RecordTable:
    """Records of the chunks that hold data, in image order. Takes 52 bytes for each."""

    def __init__(self) -> None:
        self._count = 0
        self._indexes = np.zeros(_FIRST_ROWS, np.uint64)
        self._records = np.zeros(_FIRST_ROWS, RECORD_DTYPE)

    def append(
        self, indexes: npt.NDArray[np.uint64], rows: Sequence[tuple[bytes, int, int, int]]
    ) -> None:
        """Add rows: chunk id, number of its pack, offset and length of its frame."""
        end = self._count + len(rows)
        if end > len(self._records):
            # In place, which the system does by moving pages: no second copy of a large table.
            self._indexes.resize(end * 2, refcheck=False)
            self._records.resize(end * 2, refcheck=False)
        self._indexes[self._count : end] = indexes
        self._records[self._count : end] = np.array(rows, RECORD_DTYPE)
        self._count = end

    def stored_bytes(self) -> int:
        """Return what the distinct frames take together."""
        records = self._records[: self._count]
        places = records["pack"].astype(np.uint64) << np.uint64(32) | records["offset"]
        _, firsts = np.unique(places, return_index=True)
        return int(records["frame_bytes"][firsts].sum(dtype=np.uint64))

    def manifest(self, size_bytes: int, chunk_bytes: int, packs: Sequence[bytes]) -> Manifest:
        """Return the manifest; the table must not grow any more."""
        return Manifest(
            size_bytes=size_bytes,
            chunk_bytes=chunk_bytes,
            runs=runs_of(self._indexes[: self._count]),
            packs=tuple(packs),
            records=self._records[: self._count],
        )
