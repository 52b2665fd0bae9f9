"""Residency: what L1 holds, in LMDB, with the changes that are not committed yet on top.

Changes are seen at once through the overlay and are committed in batches by a thread. A slot may be
used again only when the batch that emptied it is committed: else an unclean stop could leave a
record that points at another chunk's bytes.

Concurrency: all methods belong to the event loop, but `commit`, which runs in a thread.
"""

from __future__ import annotations

import struct
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import lmdb
import numpy as np

from cachefs.index.database import Database
from cachefs.index.segments import INDEX_MASK, slot_class

_RECORD = struct.Struct("<IIII")
"""slot, length, epoch, and a CRC-32 of the chunk id and these: LMDB checks nothing itself, and a
flipped bit must not make a chunk of another slot."""
_CHECKED_BYTES = 12
_SLOT_KEY = struct.Struct(">I")
_EXTENT_KEY = struct.Struct(">HI")
_EXTENT_SLOTS = struct.Struct("<I")


class Placement(NamedTuple):
    """Where a chunk is: slot number, its length, and in which epoch it was last verified."""

    slot: int
    plain_bytes: int
    epoch: int


class ExtentRow(NamedTuple):
    """One extent: class, index, slots, and a bitmap of the occupied ones, low bit first."""

    number: int
    extent: int
    slots: int
    bitmap: bytes


@dataclass(frozen=True, slots=True)
class Batch:
    """Changes to commit together. None means gone."""

    residency: dict[bytes, Placement | None]
    slots: dict[int, bytes | None]
    dropped_extents: frozenset[tuple[int, int]]

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to commit."""
        return not (self.residency or self.slots or self.dropped_extents)


class Residency:
    """Chunk ids and the slots that hold them."""

    def __init__(self, database: Database, extent_slots: dict[int, int]) -> None:
        self._database = database
        self._extent_slots = extent_slots
        """Slots of an extent, by class; shared with L1, which adds classes as they appear."""
        self._new: dict[bytes, Placement | None] = {}
        self._new_slots: dict[int, bytes | None] = {}
        self._dropped_extents: set[tuple[int, int]] = set()
        self._committing: Batch | None = None
        self._txn = database.env.begin(db=database.residency)

    def get(self, chunk_id: bytes) -> Placement | None:
        """Return where a chunk is, None if L1 does not hold it."""
        if self._new and chunk_id in self._new:
            return self._new[chunk_id]
        if self._committing is not None and chunk_id in self._committing.residency:
            return self._committing.residency[chunk_id]
        found = _unpacked(chunk_id, self._txn.get(chunk_id))
        return None if found is None else Placement._make(found)

    def peek(self, chunk_id: bytes) -> tuple[int, int, int] | None:
        """Return what `get` does, as a plain tuple: half the time, for hits."""
        if chunk_id in self._new or (
            self._committing is not None and chunk_id in self._committing.residency
        ):
            return self.get(chunk_id)
        return _unpacked(chunk_id, self._txn.get(chunk_id))

    def chunk_in(self, slot: int) -> bytes | None:
        """Return the id of the chunk that a slot holds, None if it is empty."""
        if slot in self._new_slots:
            return self._new_slots[slot]
        if self._committing is not None and slot in self._committing.slots:
            return self._committing.slots[slot]
        found: bytes | None = self._txn.get(_SLOT_KEY.pack(slot), db=self._database.slots)
        return found

    def put(self, chunk_id: bytes, placement: Placement) -> None:
        """Record that a slot, whose bytes are written and verified, holds a chunk."""
        self._new[chunk_id] = placement
        self._new_slots[placement.slot] = chunk_id

    def drop(self, chunk_id: bytes, slot: int) -> None:
        """Record that L1 no longer holds a chunk. The slot is free after the next commit."""
        self._new[chunk_id] = None
        self._new_slots[slot] = None

    def clear(self, slot: int) -> None:
        """Record that a slot, to which no sound record of a chunk points, is empty."""
        self._new_slots[slot] = None

    def drop_extent(self, number: int, extent: int) -> None:
        """Record that an extent of a class, whose slots are all empty, is given back."""
        self._dropped_extents.add((number, extent))

    def take_batch(self) -> Batch:
        """Return all changes since the last batch, to be committed by a thread."""
        batch = Batch(self._new, self._new_slots, frozenset(self._dropped_extents))
        self._new, self._new_slots, self._dropped_extents = {}, {}, set()
        self._committing = batch
        return batch

    def commit(self, batch: Batch) -> None:
        """Write a batch in one transaction. Blocks: runs in a thread."""
        database = self._database
        with database.env.begin(write=True) as txn:
            for chunk_id, placement in batch.residency.items():
                if placement is None:
                    txn.delete(chunk_id, db=database.residency)
                else:
                    txn.put(chunk_id, _packed(chunk_id, placement), db=database.residency)
            for slot, held in batch.slots.items():
                if held is None:
                    txn.delete(_SLOT_KEY.pack(slot), db=database.slots)
                else:
                    txn.put(_SLOT_KEY.pack(slot), held, db=database.slots)
            self._write_bitmaps(txn, batch)

    def committed(self, batch: Batch, *, failed: bool = False) -> None:
        """Take notice that a batch is in LMDB, or has to be tried again."""
        if failed:
            self._new = {**batch.residency, **self._new}
            self._new_slots = {**batch.slots, **self._new_slots}
            self._dropped_extents |= batch.dropped_extents
        self._committing = None
        # Where LMDB lets us begin none any more, the old one answers until this process ends.
        old, self._txn = self._txn, self._database.env.begin(db=self._database.residency)
        old.abort()

    def extents(self) -> list[ExtentRow]:
        """Return all extents that hold, or held, chunks."""
        with self._database.env.begin(db=self._database.extents) as txn:
            return [
                ExtentRow._make(
                    (
                        *_EXTENT_KEY.unpack(key),
                        *_EXTENT_SLOTS.unpack_from(value),
                        value[_EXTENT_SLOTS.size :],
                    )
                )
                for key, value in txn.cursor()
            ]

    def scan(self, after: int, count: int) -> list[tuple[int, bytes]]:
        """Return up to `count` committed (slot, chunk id) with slots after `after`, in order.

        Uses a transaction of its own: may be called from a thread.
        """
        with self._database.env.begin(db=self._database.slots) as txn:
            cursor = txn.cursor()
            found: list[tuple[int, bytes]] = []
            if cursor.set_range(_SLOT_KEY.pack(after + 1)):
                for key, value in cursor:
                    found.append((_SLOT_KEY.unpack(key)[0], bytes(value)))
                    if len(found) >= count:
                        break
            return found

    def count_resident(self, chunk_ids: Callable[[], Iterable[bytes]]) -> int:
        """Return the plain bytes that L1 holds of these chunks, as committed. For a thread."""
        with self._database.env.begin(db=self._database.residency) as txn:
            found = (_unpacked(chunk_id, txn.get(chunk_id)) for chunk_id in chunk_ids())
            return sum(place[1] for place in found if place is not None)

    def close(self) -> None:
        """End the reading transaction."""
        self._txn.abort()

    def _write_bitmaps(self, txn: lmdb.Transaction, batch: Batch) -> None:
        """Bring the bitmaps of the extents that the batch touches up to date."""
        changes: defaultdict[tuple[int, int], list[tuple[int, bool]]] = defaultdict(list)
        for slot, held in batch.slots.items():
            number, index = slot_class(slot), slot & INDEX_MASK
            extent, bit = divmod(index, self._extent_slots[number])
            changes[number, extent].append((bit, held is not None))
        for place, bits in changes.items():
            key = _EXTENT_KEY.pack(*place)
            size_bytes = -(-self._extent_slots[place[0]] // 8)
            row = txn.get(key, db=self._database.extents)
            bitmap = bytearray(row[_EXTENT_SLOTS.size :] if row else bytes(size_bytes))
            for bit, occupied in bits:
                if occupied:
                    bitmap[bit >> 3] |= 1 << (bit & 7)
                else:
                    bitmap[bit >> 3] &= ~(1 << (bit & 7))
            row = _EXTENT_SLOTS.pack(self._extent_slots[place[0]]) + bitmap
            txn.put(key, row, db=self._database.extents)
        for place in batch.dropped_extents:
            txn.delete(_EXTENT_KEY.pack(*place), db=self._database.extents)


def bitmap(rows: list[ExtentRow]) -> bytes:
    """Return the bitmap of the whole class whose extents these are, low bit first."""
    if not rows:
        return b""
    bits = np.zeros((max(row.extent for row in rows) + 1, rows[0].slots), np.uint8)
    for row in rows:
        bits[row.extent] = np.unpackbits(
            np.frombuffer(row.bitmap, np.uint8), count=row.slots, bitorder="little"
        )
    return np.packbits(bits.ravel(), bitorder="little").tobytes()


def _packed(chunk_id: bytes, placement: Placement) -> bytes:
    place = _RECORD.pack(*placement, 0)[:_CHECKED_BYTES]
    return place + zlib.crc32(place, zlib.crc32(chunk_id)).to_bytes(4, "little")


def _unpacked(chunk_id: bytes, record: bytes | None) -> tuple[int, int, int] | None:
    """Return slot, length and epoch; None if there is no record, or a damaged one."""
    if record is None or len(record) != _RECORD.size:
        return None
    slot, plain_bytes, epoch, check = _RECORD.unpack(record)
    if zlib.crc32(record[:_CHECKED_BYTES], zlib.crc32(chunk_id)) != check:
        return None
    return slot, plain_bytes, epoch
