"""The books of what was fetched ahead: where it is until it is used, and what becomes of it.

Each chunk is in the ledger and in the budgets from its request until its end: used, late, wasted,
evicted or failed. The end is told to the metrics and to the arm that had wished for it.

Concurrency: event loop only.
"""

from __future__ import annotations

from collections.abc import Iterable

from cachefs.metrics import Metrics
from cachefs.policy.evict.seam import Slots
from cachefs.policy.prefetch.budget import Budget
from cachefs.policy.prefetch.ledger import End, Entry, Ledger
from cachefs.policy.prefetch.replay import Replay
from cachefs.policy.prefetch.seam import Arm
from cachefs.policy.prefetch.sequential import Sequential
from cachefs.prefetch.image import OpenImage
from cachefs.tiers.flight import Flight


class Books:
    """Of one mount; `host_bytes` is the most that may be out."""

    def __init__(self, host_bytes: int, metrics: Metrics, sequential: Sequential) -> None:
        self.budget = Budget(host_bytes)
        self.ledger = Ledger()
        self._metrics = metrics
        self._sequential = sequential
        self._arms: dict[str, Arm] = {}

    def add_arm(self, arm: Arm) -> None:
        """Tell an arm of the ends of its chunks."""
        self._arms[arm.name] = arm

    def room_bytes(self, image: OpenImage, arm: str) -> int:
        """Return how much an arm may have fetched of an image now."""
        accuracy = self.ledger.account(arm).accuracy
        room_bytes = self.budget.room_bytes(arm, image.inode, accuracy)
        return min(room_bytes, image.venture.room_bytes) if _guesses(arm) else room_bytes

    def took(self, image: OpenImage, arm: str, size_bytes: int) -> None:
        """So much was asked for."""
        self.budget.take(arm, image.inode, size_bytes)
        if _guesses(arm):
            image.venture.take(size_bytes)
        self._show()

    def ended(self, entry: Entry, flight: Flight) -> None:
        """A chunk has come, or has not."""
        slot = flight.landed_in
        if slot is not None and not flight.was_joined and slot not in self.ledger:
            self.ledger.landed(slot, entry)
            return
        end = End.FAILED if slot is None else End.LATE
        self.ledger.ended_at_once(entry, end)
        self._close(entry, end)

    def used(self, slots: Slots) -> None:
        """These slots were read."""
        if len(self.ledger):
            self.judge(self.ledger.among(slots.tolist()), End.USED)

    def dropped(self, slot: int) -> None:
        """A slot was given up."""
        if slot in self.ledger:
            self.judge((slot,), End.EVICTED)

    def judge(self, slots: Iterable[int], end: End) -> None:
        """This is what became of what these slots hold."""
        for slot in slots:
            entry = self.ledger.ended(slot, end)
            if entry is not None:
                self._close(entry, end)
        self._show()

    def _close(self, entry: Entry, end: End) -> None:
        self._give_back(entry, end)
        self._count(entry, end)
        if end is not End.FAILED:  # which says nothing about the arm
            self._tell(entry, was_used=end is End.USED or end is End.LATE)

    def _give_back(self, entry: Entry, end: End) -> None:
        """What it had of budgets is free again, or lost."""
        image = entry.image
        assert isinstance(image, OpenImage)
        self.budget.give_back(entry.arm, image.inode, entry.plain_bytes)
        if _guesses(entry.arm):
            is_lost = end is End.WASTED or end is End.EVICTED
            image.venture.give_back(entry.plain_bytes, is_lost=is_lost)
        if end is End.USED:
            image.venture.earn(entry.plain_bytes)

    def _count(self, entry: Entry, end: End) -> None:
        metrics = self._metrics
        metrics.ahead_used += end is End.USED
        metrics.ahead_late += end is End.LATE
        metrics.ahead_failed += end is End.FAILED
        metrics.ahead_wasted += end is End.WASTED
        metrics.ahead_evicted += end is End.EVICTED
        if end is End.WASTED or end is End.EVICTED:
            metrics.ahead_wasted_bytes += entry.frame_bytes

    def _tell(self, entry: Entry, *, was_used: bool) -> None:
        arm = self._arms.get(entry.arm)
        if arm is not None:
            arm.judged(entry.image, entry.chunk, was_used)
        if was_used and arm is not self._sequential:
            self._sequential.others_had(entry.image)

    def _show(self) -> None:
        self._metrics.ahead_unread_bytes = self.budget.out_bytes


def _guesses(arm: str) -> bool:
    """Return whether an arm has neither proof nor stakes of its own."""
    return arm not in (Replay.name, Sequential.name)
