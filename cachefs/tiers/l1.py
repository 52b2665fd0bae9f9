"""L1: chunks on the local disk.

Knows which chunks are here, hands out slots to fill, and reads. Making room is the keeper's work
(keeper.py); who fills the slots, and why, is the stack's.

Concurrency: event loop only. A read that found a placement and reads it without an await in between
needs no lock: nothing else runs. Whoever awaits in between pins the slot; a pinned slot is not
emptied for another chunk.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
import trio

from cachefs.errors import CacheError
from cachefs.index.database import Database
from cachefs.index.epoch import Epoch
from cachefs.index.folder import CacheFolder
from cachefs.index.residency import ExtentRow, Placement, Residency, bitmap
from cachefs.index.segments import (
    CLASSES,
    INDEX_BITS,
    INDEX_MASK,
    Segment,
    class_of,
    extent_bytes_for,
    slot_bytes_of,
    slot_class,
)
from cachefs.metrics import Metrics
from cachefs.policy.evict.seam import UNKNOWN, Arrival, EvictionPolicy, Slots
from cachefs.tiers.board import NoBoard, SlotBoard
from cachefs.tiers.breaker import Breaker, State
from cachefs.tiers.slots import ClassSlots

logger = logging.getLogger(__name__)

_FAILURES, _FIRST_PAUSE_S, _LONGEST_PAUSE_S = 2, 0.5, 10.0
"""Reads of slots that failed in a row, until L1 is left; pauses between probes of its disk."""

_MOST_USES = 4096
"""Told in one go, some 0.2 ms; at more hits than that in a keeper's turn it is done between."""

MakePolicy = Callable[[int], EvictionPolicy]
"""Makes the policy of a class of slots, of which there will be so many at most."""


class L1:
    """The local tier over a cache folder."""

    def __init__(
        self,
        folder: CacheFolder,
        database: Database,
        quota_bytes: int,
        make_policy: MakePolicy,
        metrics: Metrics,
        board: SlotBoard | None = None,
    ) -> None:
        self.folder = folder
        self.board = board or NoBoard()
        """What the lane knows of the slots. A slot is emptied there before its bytes may change."""
        self.quota_bytes = quota_bytes
        self.metrics = metrics
        self.epoch = Epoch(database)
        self.classes: dict[int, ClassSlots] = {}
        self.health = Breaker(_FAILURES, _FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        """Of the disk, as readers see it; a DiskWatch probes it when it is open."""
        self.drops = 0
        """Chunks given up so far. A place that was found at the same count is still the place."""
        self.wake = trio.Event()
        """Set when the keeper has something to do; replaced by the keeper."""
        self.room = trio.Event()
        """Set when slots became free; replaced by the keeper."""
        self.on_emptied: Callable[[int], None] = lambda _: None
        """The keeper's: a slot lost its chunk and is to be freed after the commit."""
        self.on_leaving: Callable[[bytes, Placement], None] = lambda *_: None
        """Called before a chunk is given up for others."""
        self.on_used: Callable[[Slots], None] = lambda _: None
        """Told of reads in batches: full slot numbers, some of which may be empty by now."""
        self.on_dropped: Callable[[int], None] = lambda _: None
        """A slot lost its chunk."""
        self.digest: Callable[[], object] = lambda: None
        """Tells the policy what the lane has answered; for who is about to ask the policy."""
        self._make_policy = make_policy
        self._ready: dict[int, EvictionPolicy] = {}
        """For classes that nobody has needed yet, by their numbers."""
        self._uses: list[int] = []
        """Slots that were read, in order; the policies have not been told yet."""
        self._extent_slots: dict[int, int] = {}
        self._is_loaded = False
        self.residency = Residency(database, self._extent_slots)
        self._load()

    @property
    def is_left(self) -> bool:
        """Whether its disk is left alone: nothing is read from it, and nothing written."""
        return self.health.state is not State.CLOSED

    @property
    def is_empty(self) -> bool:
        """Whether it holds nothing at all."""
        return not any(slots.occupied for slots in self.classes.values())

    def find(self, chunk_id: bytes) -> Placement | None:
        """Return where a chunk is, None if it is not here."""
        return self.residency.get(chunk_id)

    def is_suspect(self, placement: Placement) -> bool:
        """Whether a chunk's bytes have to be verified before their first use."""
        return placement.epoch < self.epoch.suspect_before

    def place(self, slot: int) -> tuple[int, int]:
        """Return the fd and the position in bytes at which a slot lies."""
        segment = self.classes[slot_class(slot)].segment
        return segment.fd, (slot & INDEX_MASK) * segment.slot_bytes

    def locate_hit(self, chunk_id: bytes) -> tuple[int, int, int] | None:
        """Return fd, position and slot of a chunk that may be read as it is; count it as used."""
        found = self.residency.peek(chunk_id)
        if found is None or found[2] < self.epoch.suspect_before:
            return None
        slot = found[0]
        slots = self.classes[slot >> INDEX_BITS]
        index = slot & INDEX_MASK
        self.touch(slot)
        return slots.segment.fd, index * slots.segment.slot_bytes, slot

    def touch(self, slot: int) -> None:
        """A chunk was read. A hit pays for an append; the policies are told in batches."""
        self._uses.append(slot)
        if len(self._uses) >= _MOST_USES:
            self.tell_uses()

    def touch_many(self, slots: npt.NDArray[np.uint32] | Slots) -> None:
        """Chunks were read, in this order; some may be gone since. For hits that come in batches.

        Those of the lane come so: full slot numbers, of an earlier daemon's board perhaps.
        """
        self.tell_uses()
        self._tell(slots.astype(np.int64))

    def tell_uses(self) -> None:
        """Tell the policies of all uses so far; the keeper does it before it evicts."""
        if self._uses:
            self._tell(np.array(self._uses, np.int64))
            self._uses.clear()

    def _tell(self, slots: Slots) -> None:
        self.on_used(slots)
        numbers = slots >> INDEX_BITS
        for number, held in self.classes.items():
            mine = numbers == number
            if mine.any():
                held.used(slots[mine] & INDEX_MASK)

    def change_policy(self, make_policy: MakePolicy) -> None:
        """Rank by other policies from now on; they take over how recently each slot was used."""
        self.tell_uses()
        self._make_policy = make_policy
        self._ready.clear()
        for held in self.classes.values():
            held.change_policy(make_policy(self._most_slots(held.segment.slot_bytes)))

    def pin(self, slot: int) -> None:
        """Hold a slot: its chunk stays until as many calls of `unpin`."""
        self.classes[slot_class(slot)].pins[slot] += 1
        self.metrics.pinned_slots += 1

    def unpin(self, slot: int) -> None:
        """Give up one hold on a slot."""
        pins = self.classes[slot_class(slot)].pins
        pins[slot] -= 1
        if not pins[slot]:
            del pins[slot]
        self.metrics.pinned_slots -= 1

    async def reserve(self, chunk_bytes: int, count: int, wait_s: float) -> list[int]:
        """Return up to `count` slots to fill with chunks of at most `chunk_bytes`.

        Waits up to `wait_s` for the first of them; an empty list means that L1 has no room now, and
        the chunks are to be served without being kept.
        """
        slots = self.class_for(chunk_bytes)
        with trio.move_on_after(wait_s):
            while not slots.free and not slots.is_hopeless:
                self.wake.set()
                await self.room.wait()
        return self.take_free(chunk_bytes, count)

    def take_free(self, chunk_bytes: int, count: int) -> list[int]:
        """Return up to `count` slots to fill that are free now."""
        slots = self.class_for(chunk_bytes)
        taken = [slots.take() for _ in range(min(count, len(slots.free)))]
        if len(slots.free) < slots.low or not slots.total:
            self.wake.set()
        found = [slot for slot in taken if slot is not None]
        for slot in found:
            self.board.empty(slot)  # an earlier daemon may have said something else of it
        return found

    def target(self, slot: int) -> tuple[str, int]:
        """Return the path of the file and the position in bytes for whoever fills a slot."""
        segment = self.classes[slot_class(slot)].segment
        return str(segment.path), segment.position(slot)

    def landed(
        self, slot: int, chunk_id: bytes, plain_bytes: int, arrival: Arrival = UNKNOWN
    ) -> int:
        """A reserved slot now holds a chunk, written and verified. Returns the slot to read from.

        That is another one if the chunk came in by another way meanwhile.
        """
        found = self.residency.get(chunk_id)
        if found is not None:
            self.give_back(slot)
            return found.slot
        self.classes[slot_class(slot)].filled(slot, arrival)
        self.residency.put(chunk_id, Placement(slot, plain_bytes, self.epoch.now))
        return slot

    def give_back(self, slot: int) -> None:
        """A reserved slot was not filled, and nobody will write to it any more."""
        self.classes[slot_class(slot)].not_filled(slot)

    def verified(self, chunk_id: bytes, placement: Placement) -> None:
        """A chunk's bytes were compared with its id and are right."""
        if self.residency.get(chunk_id) == placement:
            self.residency.put(chunk_id, placement._replace(epoch=self.epoch.now))

    def drop(self, chunk_id: bytes, slot: int) -> None:
        """Give up a chunk: evicted, corrupt or unreadable."""
        found = self.residency.get(chunk_id)
        if found is not None and found.slot == slot:
            self.drops += 1
            self.board.empty(slot)
            self.residency.drop(chunk_id, slot)
            self.on_dropped(slot)
            if self.classes[slot_class(slot)].emptied(slot):
                self.on_emptied(slot)

    def drop_stray(self, slot: int) -> None:
        """Give up an occupied slot to which no sound record points: the index was damaged."""
        self.drops += 1
        self.board.empty(slot)
        self.residency.clear(slot)
        self.on_dropped(slot)
        if self.classes[slot_class(slot)].emptied(slot):
            self.on_emptied(slot)

    def class_for(self, chunk_bytes: int) -> ClassSlots:
        """Return the slots for chunks of `chunk_bytes`, making the class if it is new."""
        number = class_of(chunk_bytes)
        if number not in self.classes:
            self._add_class(number)
        return self.classes[number]

    def expect(self, chunk_sizes: Iterable[int]) -> None:
        """Make policies for chunks of these sizes in bytes now: the first read need not, 10 ms."""
        for number in {class_of(chunk_bytes) for chunk_bytes in chunk_sizes}:
            if number not in self.classes and number not in self._ready:
                self._ready[number] = self._make_policy(self._most_slots(slot_bytes_of(number)))

    @property
    def allocated_bytes(self) -> int:
        """Disk space of all extents; never over the quota."""
        return sum(len(c.extents) * c.segment.extent_bytes for c in self.classes.values())

    @property
    def resident_chunks(self) -> int:
        """How many chunks are here."""
        return sum(slots.occupied for slots in self.classes.values())

    @property
    def resident_bytes(self) -> int:
        """What the occupied slots take."""
        return sum(slots.occupied * slots.segment.slot_bytes for slots in self.classes.values())

    def free_disk_bytes(self) -> int:
        """Return the free space of the cache's file system, as an ordinary user sees it."""
        stat = os.statvfs(self.folder.path)
        return stat.f_bavail * stat.f_frsize

    def sync(self) -> None:
        """Bring all slots to the disk. Blocks: in a thread."""
        for slots in self.classes.values():
            os.fdatasync(slots.segment.fd)

    def close(self) -> None:
        """Close the files. The keeper has to have stopped."""
        self.residency.close()
        for slots in self.classes.values():
            slots.segment.close()

    def _add_class(self, number: int, extent_slots: int = 0) -> None:
        slot_bytes = slot_bytes_of(number)
        extent_bytes = extent_slots * slot_bytes or extent_bytes_for(self.quota_bytes, slot_bytes)
        segment = Segment(self.folder.segments_path, number, extent_bytes)
        policy = self._ready.pop(number, None) or self._make_policy(self._most_slots(slot_bytes))
        self.classes[number] = ClassSlots(segment, policy, self.metrics)
        self._extent_slots[number] = segment.extent_slots
        if self._is_loaded:
            self.board.own_segment(number, segment.fd)

    def _most_slots(self, slot_bytes: int) -> int:
        """Return how many slots a class has when it alone has grown to the quota."""
        return self.quota_bytes // slot_bytes

    def _load(self) -> None:
        """Take over the extents and occupied slots of an earlier run; no scan of chunks."""
        rows = self.residency.extents()
        cut: set[int] = set()
        for row in rows:
            if row.number not in self.classes:
                self._add_class(row.number, row.slots)
            slots = self.classes[row.number]
            slots.add_extent(row.extent, row.bitmap)
            if slots.segment.size_bytes() < (row.extent + 1) * slots.segment.extent_bytes:
                # Replaced or cut by somebody: what the index says of it may be wrong.
                self.epoch.suspect_all()
                cut.add(row.number)
        self._agree_with_board([row for row in rows if row.number not in cut])
        self._give_back_unknown()

    def _agree_with_board(self, rows: list[ExtentRow]) -> None:
        """Empty on the board what the index does not know: its bytes may change from now on."""
        for number in range(CLASSES):
            self.board.empty_class(number, bitmap([row for row in rows if row.number == number]))
        for number, slots in self.classes.items():
            self.board.own_segment(number, slots.segment.fd)
        self._is_loaded = True

    def _give_back_unknown(self) -> None:
        """Give back disk space that an earlier run took, and of which no record tells."""
        known = {slots.segment.path for slots in self.classes.values()}
        try:
            for path in self.folder.segments_path.iterdir():
                if path not in known:
                    path.unlink()
            for slots in self.classes.values():
                slots.segment.release_all_but(slots.extents)
        except (OSError, CacheError) as error:
            logger.warning("cannot give back what L1 does not use: %s", error)
