"""The board, as the daemon writes it: what L1 holds, so that the lane can answer reads itself.

The board outlives the daemon. What an earlier one has said of slots stays true, because nobody
writes to a slot before it was emptied on the board (`mount_helper/board.h` says why that is
enough); what it has said of images is taken over at the start.

An image gets a place on the board when it is first opened: a number, and a table in which the
chunks that are published find theirs. Both are a cache: when there is no room, the image that was
placed longest ago loses its own, and its reads come to the daemon, which places it again at the
next open, or at the next read that has to wait.

Concurrency: event loop only; one daemon at a time.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from mount_helper import _lane

NO_INODE = 0
"""Of an image that has no place on a board."""

_LAYOUT = _lane.BOARD_LAYOUT
_PAGE_BYTES = 4096
_KINDS = {4: "<u4", 8: "<u8"}

ACCESS_DTYPE = np.dtype(
    {
        "names": [name for name, _, _ in _LAYOUT["access_fields"]],
        "formats": [_KINDS[size_bytes] for _, _, size_bytes in _LAYOUT["access_fields"]],
        "offsets": [offset for _, offset, _ in _LAYOUT["access_fields"]],
        "itemsize": _LAYOUT["access_bytes"],
    }
)
"""One read: at_ns (CLOCK_MONOTONIC), inode, offset and length in bytes, pid of the reader, by_lane
(1: the lane answered, 0: the daemon). From the layout that the lane was compiled with."""

_FORGET_PAGES_AFTER = 1 << 14
"""Entries written until the daemon gives up its view of them: each may be a page of 4 KiB, so it
holds 64 MiB at most."""

_MOST_UNTOLD = 1024
"""Others are told when they are read again."""

_DRAINED = 1 << 14
"""Accesses taken at once, about 2 ms of the event loop."""


class SlotBoard(Protocol):
    """What L1 says of its slots."""

    def own_segment(self, number: int, fd: int) -> None:
        """The slots of a class are in this file."""
        ...

    def empty(self, slot: int) -> None:
        """A slot's bytes may change from now on."""
        ...

    def empty_class(self, number: int, keep: bytes) -> None:
        """The slots of a class hold nothing, but for those of a bitmap, low bit first."""
        ...

    def publish(self, inode: int, index: int, chunk_id: bytes, slot: int) -> bool:
        """A slot holds a chunk, verified, which is the one at `index` of an image.

        False: it has to be said again, because the image has no place or the lane has not taken
        the segment yet.
        """
        ...

    def publish_zero(self, inode: int, index: int) -> None:
        """A chunk of an image is all zeros."""
        ...


class NoBoard:
    """A SlotBoard for an L1 that nobody else reads."""

    def own_segment(self, number: int, fd: int) -> None:
        """See SlotBoard."""

    def empty(self, slot: int) -> None:
        """See SlotBoard."""

    def empty_class(self, number: int, keep: bytes) -> None:
        """See SlotBoard."""

    def publish(self, inode: int, index: int, chunk_id: bytes, slot: int) -> bool:
        """See SlotBoard."""
        return True

    def publish_zero(self, inode: int, index: int) -> None:
        """See SlotBoard."""


class Board:
    """The board of a mount.

    `offer` gives the lane a segment file: class number and fd. Without `serves_hits` nothing is
    published, and all reads come to the daemon.
    """

    def __init__(self, fd: int, offer: Callable[[int, int], None], *, serves_hits: bool) -> None:
        self._board = _lane.Board(fd)
        self._offer = offer
        self._serves_hits = serves_hits
        self._numbers: OrderedDict[int, int] = OrderedDict()
        """By inode; the one placed longest ago first."""
        self._tables: dict[int, tuple[int, int]] = {}
        """By number: where a table begins, and its bytes."""
        self._written = 0
        self._untold: dict[tuple[int, int], tuple[bytes, int]] = {}
        """Chunks of images with a place whose segment the lane has not taken yet: id and slot."""
        self.counters = self._board.counters
        for number, inode, _, _, table_at, table_bytes in self._board.images():
            self._take_note(number, inode, table_at, table_bytes)

    def own_segment(self, number: int, fd: int) -> None:
        """See SlotBoard."""
        if self._serves_hits:
            status = os.fstat(fd)
            self._board.own_segment(number, status.st_dev, status.st_ino)
            if not self._board.is_adopted(number):
                self._board.empty_class(number, b"")  # what is there was said of another file
            self._offer(number, fd)

    def empty(self, slot: int) -> None:
        """See SlotBoard."""
        if self._untold:
            self._untold = {key: told for key, told in self._untold.items() if told[1] != slot}
        self._board.empty(slot)

    def empty_class(self, number: int, keep: bytes) -> None:
        """See SlotBoard."""
        self._untold.clear()
        self._board.empty_class(number, keep)

    def publish(self, inode: int, index: int, chunk_id: bytes, slot: int) -> bool:
        """See SlotBoard."""
        if not self._serves_hits:
            return True
        self._count_written()
        is_told = self._board.publish(inode, index, chunk_id, slot)
        if not is_told and inode in self._numbers and len(self._untold) < _MOST_UNTOLD:
            self._untold[inode, index] = chunk_id, slot
        return is_told

    def beat(self) -> None:
        """Give a sign of life, and tell what the lane could not take before."""
        self._board.beat()
        untold, self._untold = self._untold, {}
        for (inode, index), (chunk_id, slot) in untold.items():
            self.publish(inode, index, chunk_id, slot)

    def publish_zero(self, inode: int, index: int) -> None:
        """See SlotBoard."""
        if self._serves_hits:
            self._board.publish_zero(inode, index)
            self._count_written()

    def place(self, inode: int, size_bytes: int, chunk_bytes: int, *, holds: bool = False) -> None:
        """Give an image a place, if it has none, and is not too large for one.

        `holds`: whoever reads it waits for the store for as long as it takes.
        """
        if inode in self._numbers or not (self._serves_hits or holds):
            return
        chunks = -(-size_bytes // chunk_bytes) if self._serves_hits else 0
        table_bytes = -(-chunks * _LAYOUT["chunk_entry_bytes"] // _PAGE_BYTES) * _PAGE_BYTES
        if table_bytes > _LAYOUT["tables_bytes"]:
            return
        number = self._free_number(inode)
        table_at = self._free_table(table_bytes)
        shift = chunk_bytes.bit_length() - 1
        self._board.hold_image(number, holds)
        self._board.set_image(number, inode, size_bytes, shift, table_at, table_bytes)
        self._take_note(number, inode, table_at, table_bytes)

    def forget(self, inode: int) -> None:
        """Take an image's place away."""
        number = self._numbers.pop(inode, None)
        if number is not None:
            del self._tables[number]
            self._board.unset_image(number)

    def drain(self) -> tuple[npt.NDArray[np.void], npt.NDArray[np.uint32]]:
        """Return accesses (ACCESS_DTYPE) since the last call, and the slots the lane read from."""
        accesses, slots = self._board.drain(_DRAINED)
        return np.frombuffer(accesses, ACCESS_DTYPE), np.frombuffer(slots, np.uint32)

    def _take_note(self, number: int, inode: int, table_at: int, table_bytes: int) -> None:
        self._numbers[inode] = number
        self._tables[number] = (table_at, table_bytes)

    def _free_number(self, inode: int) -> int:
        """Return a number that an inode can have; the one that was last used longest ago."""
        first = self._board.bucket(inode)
        numbers = range(first, first + _LAYOUT["ways"])
        free = [number for number in numbers if number not in self._tables]
        if free:
            return min(free, key=self._board.generation)
        oldest = next(i for i, number in self._numbers.items() if number in numbers)
        number = self._numbers[oldest]
        self.forget(oldest)
        return number

    def _free_table(self, table_bytes: int) -> int:
        """Return where a table has room, taking away the oldest ones until there is some."""
        while True:
            at = 0
            for begin, taken_bytes in sorted(self._tables.values()):
                if begin - at >= table_bytes:
                    return at
                at = max(at, begin + taken_bytes)
            if _LAYOUT["tables_bytes"] - at >= table_bytes:
                return at
            self.forget(next(iter(self._numbers)))

    def _count_written(self) -> None:
        self._written += 1
        if self._written >= _FORGET_PAGES_AFTER:
            self._written = 0
            self._board.forget_pages()
