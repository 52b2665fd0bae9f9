"""The ledger: how every chunk that was fetched ahead of demand ended. Pure.

Each ends once: *used* (read after it had come), *late* (somebody waited for it when it came),
*wasted* (given up as not wanted: its file was closed, or a long time went by), *evicted* (L1 needed
its slot first) or *failed* (it did not come, or L1 could not keep it). By slot, because that is
what reads name, whichever image they read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import NamedTuple

from cachefs.policy.prefetch.seam import Image

_PRIOR_CHUNKS = 16.0
_PRIOR_ACCURACY = 0.8
_MEMORY_CHUNKS = 4096.0
"""Of each arm's accuracy; older chunks fade."""


class End(Enum):
    """How a chunk that was fetched ahead ended."""

    USED = "used"
    LATE = "late"
    WASTED = "wasted"
    EVICTED = "evicted"
    FAILED = "failed"


class Entry(NamedTuple):
    """A chunk that was fetched ahead."""

    arm: str
    image: Image
    chunk: int
    plain_bytes: int
    frame_bytes: int
    time_s: float = 0.0
    """When it was asked for."""


@dataclass(slots=True)
class Account:
    """The chunks of one arm by their ends, and the bytes that nobody used, as in the store."""

    used: int = 0
    late: int = 0
    wasted: int = 0
    evicted: int = 0
    failed: int = 0
    fetched_bytes: int = 0
    wasted_bytes: int = 0
    waiting: int = 0
    """Chunks that have not ended yet."""
    _good: float = field(default=_PRIOR_CHUNKS * _PRIOR_ACCURACY)
    _all: float = field(default=_PRIOR_CHUNKS)

    @property
    def accuracy(self) -> float:
        """The share of its chunks that were read; the later ones count more."""
        return self._good / self._all

    def add(self, end: End, frame_bytes: int) -> None:
        """Count a chunk's end."""
        if end is End.FAILED:
            self.failed += 1
            return
        self.fetched_bytes += frame_bytes
        is_good = end is End.USED or end is End.LATE
        if end is End.USED:
            self.used += 1
        elif end is End.LATE:
            self.late += 1
        else:
            self.wasted += end is End.WASTED
            self.evicted += end is End.EVICTED
            self.wasted_bytes += frame_bytes
        if self._all >= _MEMORY_CHUNKS:
            self._good /= 2
            self._all /= 2
        self._good += is_good
        self._all += 1

    def to_dict(self, misses: int) -> dict[str, float | int]:
        """Return the figures; `misses`: chunks that readers had to fetch themselves."""
        read = self.used + self.late
        ended = read + self.wasted + self.evicted
        told = {f.name: getattr(self, f.name) for f in fields(self) if not f.name.startswith("_")}
        return told | {
            "accuracy": round(read / ended, 4) if ended else 0.0,
            "coverage": round(self.used / (self.used + misses), 4) if self.used + misses else 0.0,
            "lateness": round(self.late / read, 4) if read else 0.0,
        }


class Ledger:
    """Chunks that were fetched ahead, from their coming to their end."""

    def __init__(self) -> None:
        self.accounts: dict[str, Account] = {}
        self._entries: dict[int, Entry] = {}
        """By slot, the oldest first."""

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, slot: int) -> bool:
        return slot in self._entries

    def among(self, slots: Iterable[int]) -> set[int]:
        """Return those of these slots whose chunks have not ended."""
        return self._entries.keys() & set(slots)

    def account(self, arm: str) -> Account:
        """Return the account of an arm."""
        found = self.accounts.get(arm)
        if found is None:
            found = self.accounts[arm] = Account()
        return found

    def landed(self, slot: int, entry: Entry) -> None:
        """A chunk came into a slot, and nobody waited for it."""
        self._entries[slot] = entry
        self.account(entry.arm).waiting += 1

    def ended_at_once(self, entry: Entry, end: End) -> None:
        """A chunk came late, or not at all."""
        self.account(entry.arm).add(end, entry.frame_bytes)

    def ended(self, slot: int, end: End) -> Entry | None:
        """The chunk in a slot has ended; returns what it was, None if it was not of this ledger."""
        entry = self._entries.pop(slot, None)
        if entry is not None:
            account = self.account(entry.arm)
            account.waiting -= 1
            account.add(end, entry.frame_bytes)
        return entry

    def slots_of(self, image: Image) -> list[int]:
        """Return the slots of an image's chunks that have not ended."""
        return [slot for slot, entry in self._entries.items() if entry.image is image]

    def older_than(self, time_s: float) -> Iterable[int]:
        """Return the slots of chunks asked for before this time that have not ended."""
        slots = []
        for slot, entry in self._entries.items():
            if entry.time_s >= time_s:
                break
            slots.append(slot)
        return slots
