"""What `Cache` does with values, in the event loop: chunks into slots, and back.

Built from the parts of a mount: slots and residency of L1, the reader with its flights, fetchers
for L2. A value is its chunks and a row in the index; the chunks are shared with all else that L1
holds of the same content, and are given up like all else.

Concurrency: event loop only; writes into slots run in threads.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

import lmdb
import trio

from cachefs.errors import CacheError, CachefsError
from cachefs.index.values import Value, Values
from cachefs.model.chunk import ChunkRef
from cachefs.reader import Reader
from cachefs.tiers.jobs import Answer, DemoteJob, Leaving
from cachefs.tiers.l1 import L1
from cachefs.tiers.landing import SlotWriter
from cachefs.tiers.pool import FetcherPool
from cachefs.tiers.stack import Stack

logger = logging.getLogger(__name__)

_RESERVE_WAIT_S = 1.0
"""How long a write waits for room in L1, each time that the keeper makes some."""

_SLOTS_AT_ONCE = 64
"""Reserved together: 4 MiB of chunks of 64 KiB."""

_COMMIT_INTERVAL_S = 0.1
_FILL_L2 = 9
"""The priority: after all that somebody waits for."""

_LEAVING_AT_ONCE = 256


class Cut(NamedTuple):
    """A value, cut into chunks: their references and bytes, in order."""

    value: Value
    refs: list[ChunkRef]
    parts: list[memoryview]


class KeptValues:
    """Values in L1, and in L2 where there is one."""

    def __init__(
        self,
        l1: L1,
        values: Values,
        reader: Reader,
        stack: Stack,
        pool: FetcherPool,
        *,
        has_l2: bool,
    ) -> None:
        self._l1 = l1
        self._values = values
        self._reader = reader
        self._stack = stack
        self._pool = pool
        self._has_l2 = has_l2
        self._writer = SlotWriter()
        self._committing = trio.Lock()
        self.hits = self.misses = 0

    async def get(self, key: bytes) -> bytes | None:
        """Return a value, None if it is not here (any more), or expired."""
        value = self._values.get(key, time.time())
        data = None if value is None else await self._read(key, value)
        self.hits += data is not None
        self.misses += data is None
        return data

    async def _read(self, key: bytes, value: Value) -> bytes | None:
        refs = value.refs()
        if not self._has_l2 and not self._is_here(refs):
            self._values.delete(key)  # nobody can bring it back
            return None
        try:
            return await self._reader.read_chunks(refs, value.chunk_bytes)
        except CachefsError as error:
            # A row that L2 may be able to fill again some day stays until it is expired.
            logger.info("a value is not to be had: %s", error)
            return None

    def exists(self, key: bytes) -> bool:
        """Whether a value is in L1; with an L2 also whether it may be there, which is not asked."""
        value = self._values.get(key, time.time())
        return value is not None and (self._has_l2 or self._is_here(value.refs()))

    def delete(self, key: bytes) -> bool:
        """Forget a value; whether there was one."""
        is_known = self._values.get(key, time.time()) is not None
        if is_known:
            self._values.delete(key)
        return is_known

    async def set(self, key: bytes, cut: Cut) -> bool:
        """Keep a value in place of the key's earlier one; whether there was room for it.

        Without room the key has no value: the earlier one must not be taken for this one.
        """
        is_kept = False
        try:
            with ExitStack() as pins:
                slots = await self._fill(cut, pins)
                is_kept = slots is not None
                if slots is not None and self._has_l2:
                    self._fill_l2(cut.refs, slots)
                if is_kept:
                    self._values.put(key, cut.value)
        except (OSError, CacheError) as error:
            self._l1.metrics.l1_errors += 1
            logger.warning("L1 does not take a value: %s", error)
        finally:
            if not is_kept:
                self._values.delete(key)
        return is_kept

    def prefetch(self, key: bytes, deadline_s: float) -> int:
        """Start to bring what L1 lacks of a value from L2; how many chunks that is."""
        value = self._values.get(key, time.time()) if self._has_l2 else None
        if value is None:
            return 0
        missing = [ref for ref in value.refs() if self._l1.find(ref.id) is None]
        with self._stack.flights(missing, value.chunk_bytes, deadline_s):
            return len(missing)  # a flight lands without a reader as well

    async def run(self) -> None:
        """Commit what changes until cancelled."""
        while True:
            await trio.sleep(_COMMIT_INTERVAL_S)
            try:
                await self.commit()
            except lmdb.Error as error:
                logger.warning("cannot write the index of values, trying again: %s", error)
                await trio.sleep(1)

    async def commit(self) -> None:
        """Commit what has changed.

        Raises:
            lmdb.Error: the disk takes nothing.
        """
        async with self._committing:
            if self._values.is_changed:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(self._values.commit)

    def __len__(self) -> int:
        """About how many keys are known."""
        return len(self._values)

    def _is_here(self, refs: Sequence[ChunkRef]) -> bool:
        return all(self._l1.find(ref.id) is not None for ref in refs)

    async def _fill(self, cut: Cut, pins: ExitStack) -> list[int] | None:
        """Bring chunks into slots, held by `pins`; None if there is no room for all of them."""
        slots: list[int] = []
        pairs = list(zip(cut.refs, cut.parts, strict=True))
        while len(slots) < len(pairs):
            batch = pairs[len(slots) : len(slots) + _SLOTS_AT_ONCE]
            found = [self._l1.find(ref.id) for ref, _ in batch]
            lacking = [pair for pair, place in zip(batch, found, strict=True) if place is None]
            filled = await self._write(lacking, cut.value.chunk_bytes)
            if filled is None:
                return None
            for ref, _ in batch:
                slot = self._l1.find(ref.id)
                if slot is None:  # one that was here is gone meanwhile: this batch once more
                    break
                self._l1.pin(slot.slot)
                pins.callback(self._l1.unpin, slot.slot)
                slots.append(slot.slot)
        return slots

    async def _write(
        self, lacking: Sequence[tuple[ChunkRef, memoryview]], chunk_bytes: int
    ) -> bool | None:
        """Write chunks into fresh slots; None if there are no slots to be had."""
        wanted = list({ref.id: (ref, part) for ref, part in lacking}.values())
        while wanted:
            taken = await self._l1.reserve(chunk_bytes, len(wanted), _RESERVE_WAIT_S)
            if not taken:
                return None
            now, wanted = wanted[: len(taken)], wanted[len(taken) :]
            is_written = False
            try:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(self._write_slots, taken, now)
                is_written = True
            finally:
                for slot, (ref, _) in zip(taken, now, strict=True):
                    if is_written:
                        self._l1.landed(slot, ref.id, ref.plain_bytes)
                    else:
                        self._l1.give_back(slot)
        return True

    def _write_slots(
        self, slots: Sequence[int], pairs: Sequence[tuple[ChunkRef, memoryview]]
    ) -> None:
        for slot, (_, part) in zip(slots, pairs, strict=True):
            segment, position = self._l1.target(slot)
            self._writer.write(segment, position, [part])

    def _fill_l2(self, refs: Sequence[ChunkRef], slots: Sequence[int]) -> None:
        """Let a fetcher see to it that L2 has these chunks, some time soon."""
        leaving = [
            Leaving(ref.id, ref.plain_bytes, *self._l1.target(slot))
            for ref, slot in zip(refs, slots, strict=True)
        ]
        for first in range(0, len(leaving), _LEAVING_AT_ONCE):
            part = tuple(leaving[first : first + _LEAVING_AT_ONCE])
            self._pool.submit(DemoteJob(self._pool.next_number(), part), _FILL_L2, _ignore)


def _ignore(_: Answer) -> None:
    """What L2 takes or not is in the metrics."""
