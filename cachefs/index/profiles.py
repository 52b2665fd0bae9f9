"""Profiles as this host keeps them: in the index, within a bound, each by the name of its image.

A row that is damaged is as good as none; every row may be deleted at any time.
"""

from __future__ import annotations

import struct

import lmdb

from cachefs.errors import CacheError
from cachefs.index.database import Database
from cachefs.model.chunk import chunk_id
from cachefs.units import MIB

MOST_BYTES = 256 * MIB
"""Of all profiles; those that were saved longest ago go."""

_SAVED = struct.Struct("<d")


class ProfileRows:
    """The database `profiles`. All methods block briefly; they run in a thread."""

    def __init__(self, database: Database, most_bytes: int = MOST_BYTES) -> None:
        self._database = database
        self._most_bytes = most_bytes

    def get(self, name: str) -> bytes | None:
        """Return the profile of an image as bytes, None if there is none."""
        with self._database.env.begin(db=self._database.profiles) as txn:
            row = txn.get(chunk_id(name.encode()))
        return bytes(row[_SAVED.size :]) if row is not None else None

    def all(self) -> list[bytes]:
        """Return all profiles, those that were saved last first."""
        with self._database.env.begin(db=self._database.profiles) as txn:
            rows = [bytes(value) for _, value in txn.cursor()]
        rows.sort(key=_saved_s, reverse=True)
        return [row[_SAVED.size :] for row in rows]

    def put(self, name: str, data: bytes, saved_s: float) -> None:
        """Keep a profile in place of an earlier one.

        Raises:
            CacheError: the local disk does not take it.
        """
        try:
            with self._database.env.begin(write=True, db=self._database.profiles) as txn:
                txn.put(chunk_id(name.encode()), _SAVED.pack(saved_s) + data)
                self._trim(txn)
        except (lmdb.Error, OSError) as error:
            raise CacheError(f"cannot keep the profile of {name}: {error}") from error

    def drop(self, name: str) -> bool:
        """Forget a profile; returns whether there was one.

        Raises:
            CacheError: the local disk does not let us.
        """
        try:
            with self._database.env.begin(write=True, db=self._database.profiles) as txn:
                return bool(txn.delete(chunk_id(name.encode())))
        except (lmdb.Error, OSError) as error:
            raise CacheError(f"cannot drop the profile of {name}: {error}") from error

    def _trim(self, txn: lmdb.Transaction) -> None:
        rows = [
            (_saved_s(bytes(value[: _SAVED.size])), bytes(key), len(value))
            for key, value in txn.cursor()
        ]
        total = sum(size for _, _, size in rows)
        for _, key, size in sorted(rows):
            if total <= self._most_bytes:
                return
            txn.delete(key)
            total -= size


def _saved_s(row: bytes) -> float:
    return float(_SAVED.unpack_from(row)[0]) if len(row) >= _SAVED.size else 0.0
