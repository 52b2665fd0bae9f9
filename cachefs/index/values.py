"""Values by key: which chunks make up what a program has set, until when it is valid.

A row names its whole key and has a check of itself, so a row that is damaged or of another key is
none. That a row is here does not say that its chunks are: L1 gives up chunks without asking.

Changes are kept in memory until `commit`; they are seen at once. The number of rows is bounded:
over the bound rows at a random place go, expired ones or not.

Concurrency: event loop, but `commit`, which runs in a thread, one at a time.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Mapping
from typing import NamedTuple

import lmdb
from blake3 import blake3

from cachefs.index.database import Database
from cachefs.model.chunk import ID_BYTES, ChunkRef, chunk_id

_HEAD = struct.Struct("<8sdQII")
"""check, expires_s, size in bytes, chunk size in bytes, length of the key."""
_CHECK_BYTES = 8
_NOWHERE = b""
"""The pack of chunks that no store has."""


class Value(NamedTuple):
    """What is known of a value.

    Attributes:
        expires_s: On the clock of `time.time`; infinity: never.
        size_bytes: Its length.
        chunk_bytes: Of all of its chunks but the last.
        ids: Of its chunks, in order.
    """

    expires_s: float
    size_bytes: int
    chunk_bytes: int
    ids: tuple[bytes, ...]

    def refs(self) -> list[ChunkRef]:
        """Return its chunks; no store has their frames."""
        found, left = [], self.size_bytes
        for one in self.ids:
            plain_bytes = min(left, self.chunk_bytes)
            left -= plain_bytes
            found.append(ChunkRef(one, plain_bytes, _NOWHERE, 0, plain_bytes))
        return found


class Values:
    """The database `values`."""

    def __init__(self, database: Database, most_rows: int) -> None:
        self._env = database.env
        self._rows = database.values
        self._most_rows = most_rows
        self._changed: dict[bytes, bytes | None] = {}
        self._committing: dict[bytes, bytes | None] = {}

    def __len__(self) -> int:
        """About how many rows there are: what is not committed counts as new."""
        with self._env.begin() as txn:
            entries: int = txn.stat(self._rows)["entries"]
        return entries + len(self._changed)

    def get(self, key: bytes, now_s: float) -> Value | None:
        """Return what is known of a key; None if that is nothing, or expired."""
        place = chunk_id(key)
        for pending in (self._changed, self._committing):
            if place in pending:
                row = pending[place]
                break
        else:
            with self._env.begin(db=self._rows) as txn:
                row = txn.get(place)
        value = None if row is None else _understood(row, key)
        return value if value is not None and value.expires_s > now_s else None

    def put(self, key: bytes, value: Value) -> None:
        """Take note of a value in place of what was known of the key."""
        self._changed[chunk_id(key)] = _row(key, value)

    def delete(self, key: bytes) -> None:
        """Forget a key."""
        self._changed[chunk_id(key)] = None

    def commit(self) -> None:
        """Write the changes down, in a thread; what fails is kept for the next time.

        Raises:
            lmdb.Error: the disk takes nothing.
        """
        self._changed, self._committing = {}, self._changed
        try:
            with self._env.begin(db=self._rows, write=True) as txn:
                _apply(txn, self._committing)
                entries = txn.stat(self._rows)["entries"]
                if entries > self._most_rows:
                    _thin_out(txn, entries - self._most_rows)
        except BaseException:
            self._changed = {**self._committing, **self._changed}
            raise
        finally:
            self._committing = {}

    @property
    def is_changed(self) -> bool:
        """Whether there is something to commit."""
        return bool(self._changed)


def _apply(txn: lmdb.Transaction, changes: Mapping[bytes, bytes | None]) -> None:
    for place, row in changes.items():
        if row is None:
            txn.delete(place)
        else:
            txn.put(place, row)


def _thin_out(txn: lmdb.Transaction, count: int) -> None:
    """Delete rows from a random place on: places are hashes, so any of them is any key."""
    with txn.cursor() as cursor:
        found = cursor.set_range(secrets.token_bytes(ID_BYTES)) or cursor.first()
        while found and count:
            count -= 1
            found = cursor.delete()
            if not cursor.key():
                found = cursor.first()


def _row(key: bytes, value: Value) -> bytes:
    head = _HEAD.pack(
        bytes(_CHECK_BYTES), value.expires_s, value.size_bytes, value.chunk_bytes, len(key)
    )
    body = head[_CHECK_BYTES:] + key + b"".join(value.ids)
    return _check(body) + body


def _understood(row: bytes, key: bytes) -> Value | None:
    if len(row) < _HEAD.size or row[:_CHECK_BYTES] != _check(row[_CHECK_BYTES:]):
        return None
    _, expires_s, size_bytes, chunk_bytes, key_bytes = _HEAD.unpack_from(row)
    at = _HEAD.size + key_bytes
    ids = row[at:]
    if row[_HEAD.size : at] != key or len(ids) != -(-size_bytes // chunk_bytes) * ID_BYTES:
        return None
    parts = range(0, len(ids), ID_BYTES)
    return Value(expires_s, size_bytes, chunk_bytes, tuple(ids[n : n + ID_BYTES] for n in parts))


def _check(body: bytes) -> bytes:
    return blake3(body).digest(_CHECK_BYTES)
