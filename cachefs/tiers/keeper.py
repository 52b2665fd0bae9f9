"""The keeper: makes room in L1 ahead of need, and commits what changed.

It grows segments while quota and free disk space allow, and else gives up the coldest chunks, so
that a fetch finds a free slot and never evicts on a read's way. All that blocks runs in a thread.

Classes of slots share the quota. A class that needs room takes an extent from the class whose next
victim is colder than its own.
"""

from __future__ import annotations

import logging

import lmdb
import trio

from cachefs.errors import CacheError
from cachefs.index.residency import Batch
from cachefs.index.segments import slot_class
from cachefs.tiers.l1 import L1
from cachefs.tiers.slots import ClassSlots

logger = logging.getLogger(__name__)

_COMMIT_INTERVAL_S = 0.1
"""How long a change may wait for its commit: a crash costs the warmth of so much."""

_MOST_EVICTIONS = 256
"""In one go, about 2 ms of the event loop; at a commit of 5 ms that is 3 GB/s of 64 KiB chunks."""

_DISK_CHECK_INTERVAL_S = 1.0
_GROW_RETRY_S = 10.0
"""After the disk refused to grow a segment."""


class Keeper:
    """Runs beside an L1 until it is cancelled."""

    def __init__(self, l1: L1, free_floor_bytes: int) -> None:
        self._l1 = l1
        self._floor = free_floor_bytes
        self._emptied: list[int] = []
        """Slots given up, which are free after the next commit."""
        self._dying: list[tuple[ClassSlots, int]] = []
        """Extents whose slots are being emptied, to be given back."""
        self._no_growth_until_s = 0.0
        self._free_disk_bytes = l1.free_disk_bytes()
        l1.on_emptied = self._emptied.append

    async def run(self) -> None:
        """Keep L1 until cancelled."""
        checked_s = 0.0
        while True:
            with trio.move_on_after(_COMMIT_INTERVAL_S):
                await self._l1.wake.wait()
            self._l1.wake = trio.Event()
            if trio.current_time() - checked_s > _DISK_CHECK_INTERVAL_S:
                checked_s = trio.current_time()
                await self._watch_disk()
            await self._make_room()
            await self.commit()

    async def commit(self) -> bool:
        """Commit all changes of residency; slots that were emptied before become free.

        Returns whether the index took them; if not, they are kept for the next time.
        """
        l1 = self._l1
        batch = l1.residency.take_batch()
        emptied, self._emptied[:] = list(self._emptied), []
        dying, self._dying = self._dying, []
        if not batch.is_empty:
            try:
                with trio.CancelScope(shield=True):  # what was taken must not be lost
                    await trio.to_thread.run_sync(self._write, batch)
            except lmdb.PanicError:
                raise  # no transaction will ever work again here: the next daemon opens it anew
            except Exception as error:  # noqa: BLE001 - LMDB's errors, the disk's; the batch is kept
                logger.warning("cannot write the index, trying again: %s", error)
                l1.residency.committed(batch, failed=True)
                self._emptied.extend(emptied)
                self._dying.extend(dying)
                await trio.sleep(1)
                return False
            l1.metrics.commits += 1
        l1.residency.committed(batch)
        await self._give_back(dying)
        self._free(emptied)
        return True

    def _write(self, batch: Batch) -> None:
        """In a thread: the epoch comes before its first record."""
        self._l1.epoch.save()
        self._l1.residency.commit(batch)

    def _free(self, emptied: list[int]) -> None:
        """Free the slots whose emptying is committed; not one that a read still holds."""
        for slots in self._l1.classes.values():
            mine = [slot for slot in emptied if slot_class(slot) == slots.segment.number]
            slots.release(slot for slot in mine if slot not in slots.pins)
            self._emptied.extend(slot for slot in mine if slot in slots.pins)
        if emptied:
            self._announce_room()

    async def _give_back(self, dying: list[tuple[ClassSlots, int]]) -> None:
        for slots, extent in dying:
            slots.remove_extent(extent)
            try:
                await trio.to_thread.run_sync(slots.segment.release, extent)
            except CacheError as error:
                logger.warning("%s", error)

    async def _make_room(self) -> None:
        self._l1.tell_uses()
        for slots in list(self._l1.classes.values()):
            if len(slots.free) >= slots.low and slots.total:
                slots.is_hopeless = False
                continue
            if await self._grow(slots):
                slots.is_hopeless = False
                continue
            other = self._colder_class(slots)
            if other is None or not self._empty_extent(other):
                self._evict(slots)
            nothing_comes = not (slots.free or self._emptied or self._dying)
            slots.is_hopeless = nothing_comes and not slots.occupied
            if slots.is_hopeless:
                self._announce_room()  # those who wait need not

    def _evict(self, slots: ClassSlots) -> None:
        """Give up enough for the high watermark."""
        self._l1.digest()
        self._l1.tell_uses()
        wanted = slots.high - len(slots.free) - len(self._emptied)
        for slot in slots.victims(min(max(0, wanted), _MOST_EVICTIONS)):
            if not self._give_up(slot):
                self._l1.drop_stray(slot)
        if wanted > _MOST_EVICTIONS:
            self._l1.wake.set()

    def _give_up(self, slot: int) -> bool:
        """Give up the chunk in a slot; False if no sound record says which that is."""
        chunk_id = self._l1.residency.chunk_in(slot)
        placement = None if chunk_id is None else self._l1.find(chunk_id)
        if chunk_id is None or placement is None or placement.slot != slot:
            return False
        self._l1.on_leaving(chunk_id, placement)
        self._l1.drop(chunk_id, slot)
        self._l1.metrics.evicted_chunks += 1
        return True

    async def _grow(self, slots: ClassSlots) -> bool:
        """Give a class one more extent, if quota and disk allow."""
        need = slots.segment.extent_bytes
        l1 = self._l1
        if (
            l1.allocated_bytes + need > l1.quota_bytes
            or self._free_disk_bytes - need < self._floor
            or trio.current_time() < self._no_growth_until_s
        ):
            return False
        extent = slots.next_extent()
        try:
            await trio.to_thread.run_sync(slots.segment.allocate, extent)
        except CacheError as error:
            logger.warning("L1 does not grow: %s", error)
            l1.metrics.l1_errors += 1
            self._no_growth_until_s = trio.current_time() + _GROW_RETRY_S
            return False
        self._free_disk_bytes -= need
        slots.add_extent(extent)
        self._announce_room()
        return True

    def _colder_class(self, slots: ClassSlots) -> ClassSlots | None:
        """Return the class to take an extent from, None if `slots` is the coldest itself."""
        others = [
            other
            for other in self._l1.classes.values()
            if other is not slots and other.extents and not self._is_dying(other)
        ]
        if not others:
            return None
        coldest = min(others, key=lambda other: other.policy.coldest())
        own = slots.policy.coldest() if slots.occupied else None
        return coldest if own is None or coldest.policy.coldest() < own else None

    def _is_dying(self, slots: ClassSlots) -> bool:
        return any(dying is slots for dying, _ in self._dying)

    def _empty_extent(self, slots: ClassSlots) -> bool:
        """Give up the extent with the coldest chunk, unless a read or fetcher holds a slot."""
        extent = slots.coldest_extent()
        members = slots.members(extent)
        if any(slot in slots.pins or slot in slots.filling for slot in members):
            return False
        gone = set(members)
        slots.free = type(slots.free)(slot for slot in slots.free if slot not in gone)
        for slot in members:
            if not self._give_up(slot) and slots.is_occupied(slot):
                self._l1.drop_stray(slot)
        self._l1.residency.drop_extent(slots.segment.number, extent)
        self._dying.append((slots, extent))
        return True

    async def _watch_disk(self) -> None:
        """Shrink L1 while it is over its quota or the disk is under the floor."""
        l1 = self._l1
        try:
            self._free_disk_bytes = await trio.to_thread.run_sync(l1.free_disk_bytes)
        except OSError as error:
            logger.warning("cannot ask %s for its free space: %s", l1.folder.path, error)
            return
        missing = max(self._floor - self._free_disk_bytes, l1.allocated_bytes - l1.quota_bytes)
        while missing > 0:
            owners = [slots for slots in l1.classes.values() if slots.extents]
            owners.sort(key=lambda slots: slots.policy.coldest())
            taken = next((slots for slots in owners if self._empty_extent(slots)), None)
            if taken is None:
                break
            missing -= taken.segment.extent_bytes
            await self.commit()

    def _announce_room(self) -> None:
        self._l1.room.set()
        self._l1.room = trio.Event()
