"""Slots in the order of a stamp, oldest first, in four bytes a slot.

Each slot in an order has a stamp: the tick at which it was put to its young end; 0 is a slot that
is not in it. The old end comes from a queue, made by a vectorised pass over the stamps when it runs
out. Every slot outside of the queue is younger than every slot in it, and an entry whose stamp has
changed since is skipped, so the order is exact, and the pass is paid once for thousands of slots.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterable
from itertools import islice

import numpy as np
import numpy.typing as npt

from cachefs.policy.evict.seam import Keep, Slots

_QUEUE_LENGTH = 4096
_QUEUE_SHARE = 1024
"""Of all slots, for millions: a pass over them is to be worth that part."""
_SAMPLE = 16_384
LAST_TICK = 2**32 - 1


class Ticks:
    """The clock that all classes of one L1 share, so that their slots compare."""

    def __init__(self) -> None:
        self._now = 1
        self._orders: list[Order] = []

    def register(self, order: Order) -> None:
        """Tell the clock whose stamps it has to halve when it overflows."""
        self._orders.append(order)

    def forget(self, orders: Iterable[Order]) -> None:
        """These are no longer in use."""
        gone = set(map(id, orders))
        self._orders = [order for order in self._orders if id(order) not in gone]

    @property
    def now(self) -> int:
        """The last tick that was given out."""
        return self._now

    def next(self) -> int:
        """Return the next tick."""
        self._now += 1
        if self._now >= LAST_TICK:
            self._halve()
        return self._now

    def take(self, count: int) -> int:
        """Return the first of `count` ticks in a row."""
        if self._now + count >= LAST_TICK:
            self._halve()
        first = self._now + 1
        self._now += count
        return first

    def advance(self, used: int) -> None:
        """Make all ticks to come later than `used`."""
        self._now = max(self._now, used)

    def _halve(self) -> None:
        """Once in four billion uses: halve all stamps, which keeps their order nearly as it is."""
        for order in self._orders:
            order.halve()
        self._now = (LAST_TICK >> 1) + 1


class Order:
    """The slots of one list of a policy."""

    def __init__(self, ticks: Ticks) -> None:
        self.stamps = array("I")
        self.count = 0
        self._ticks = ticks
        self._queue: deque[tuple[int, int]] = deque()
        self._is_whole = True
        """Every slot of this order is in the queue."""
        ticks.register(self)

    def grow(self, slots: int) -> None:
        """Slots 0 to `slots` - 1 exist from now on."""
        self.stamps.frombytes(bytes(4 * max(0, slots - len(self.stamps))))

    def __contains__(self, slot: int) -> bool:
        return self.stamps[slot] != 0

    def put(self, slot: int) -> int:
        """Put a slot to the young end, whether or not it is in this order. Returns its stamp."""
        if not self.stamps[slot]:
            self.count += 1
        stamp = self.stamps[slot] = self._ticks.next()
        if self._is_whole and len(self._queue) < _QUEUE_LENGTH:
            self._queue.append((slot, stamp))
        else:
            self._is_whole = False
        return stamp

    def renew(self, slot: int) -> None:
        """Put a slot that is in this order to the young end."""
        self.stamps[slot] = self._ticks.next()
        self._is_whole = False

    def renew_many(self, slots: Slots) -> None:
        """Put slots, all of this order, to the young end, one after the other."""
        first = self._ticks.take(len(slots))
        self.view()[slots] = np.arange(first, first + len(slots), dtype=np.uint32)
        self._is_whole = False

    def put_many(self, slots: Slots) -> None:
        """Put slots, none of which is in this order, to the young end, one after the other."""
        self.renew_many(slots)
        self.count += len(slots)

    def discard(self, slot: int) -> bool:
        """Take a slot out; returns whether it was in."""
        was_in = self.stamps[slot] != 0
        if was_in:
            self.stamps[slot] = 0
            self.count -= 1
        return was_in

    def oldest(self) -> tuple[int, int] | None:
        """Return the oldest slot and its stamp, None if there is none. It stays."""
        while True:
            queue, stamps = self._queue, self.stamps
            while queue:
                if stamps[queue[0][0]] == queue[0][1]:
                    return queue[0]
                queue.popleft()
            if not self.count:
                self._is_whole = True
                return None
            self.refill()

    def peek_many(self, count: int) -> Slots:
        """Return up to `count` of the oldest slots, as far as the queue goes. They stay."""
        self.oldest()
        first = islice(self._queue, 2 * count)
        found = [slot for slot, stamp in first if self.stamps[slot] == stamp]
        return np.array(found[:count], np.int64)

    def pop(self) -> int | None:
        """Take the oldest slot out and return it, None if there is none."""
        found = self.oldest()
        if found is None:
            return None
        self._queue.popleft()
        self.stamps[found[0]] = 0
        self.count -= 1
        return found[0]

    def pop_many(self, count: int, keep: Keep) -> list[int]:
        """Take up to `count` of the oldest slots out, none that `keep` holds; those stay oldest."""
        chosen: list[int] = []
        kept: list[tuple[int, int]] = []
        is_anew = False
        while len(chosen) < count and self.count > len(kept):
            if not self._queue:
                if is_anew:
                    break
                self.refill()
                is_anew = True
                kept.clear()  # they are in the new queue
                continue
            slot, stamp = entry = self._queue.popleft()
            if self.stamps[slot] != stamp:
                continue  # used again or taken out since the queue was made
            if keep(slot):
                kept.append(entry)
            else:
                self.stamps[slot] = 0
                self.count -= 1
                chosen.append(slot)
        self._queue.extendleft(reversed(kept))
        return chosen

    def refill(self) -> None:
        """Make the queue anew."""
        self._queue, self._is_whole = self.oldest_above(0)

    def oldest_above(self, after: int) -> tuple[deque[tuple[int, int]], bool]:
        """Return the oldest slots with stamps above `after`, in order, and whether these are all.

        A slot comes with the stamp that it had; when that has changed, the entry means nothing.
        """
        view = self.view()
        wanted = max(_QUEUE_LENGTH, len(view) // _QUEUE_SHARE)
        limit = _guess(view, after, wanted)
        if limit > after:
            # One comparison without a sign: above `after`, and not above `limit`.
            near = view - np.uint32(after + 1) <= np.uint32(limit - after - 1)
            found = _in_order(np.flatnonzero(near), view)
            if found:
                return found, False
        slots = np.flatnonzero(view > after) if after else np.flatnonzero(view)
        is_whole = len(slots) <= wanted
        stamps = view[slots]
        if not is_whole:
            slots = slots[stamps <= np.partition(stamps, wanted - 1)[wanted - 1]]
        return _in_order(slots, view), is_whole

    def view(self) -> npt.NDArray[np.uint32]:
        """Return the stamps as an array; not to be kept: a view holds off `grow`."""
        return np.frombuffer(self.stamps, np.uint32)

    def replace(self, stamps: npt.NDArray[np.uint32]) -> None:
        """Take these stamps instead: (slots,) uint32, for the same slots."""
        self.view()[:] = stamps
        self.count = int(np.count_nonzero(stamps))
        self.forget_queue()

    def forget_queue(self) -> None:
        """The queue says nothing any more."""
        self._queue.clear()
        self._is_whole = False

    def halve(self) -> None:
        """Halve all stamps; a slot that is in stays in."""
        view = self.view()
        view[:] = np.maximum(view >> 1, view > 0)
        self.forget_queue()


def _in_order(slots: Slots, view: npt.NDArray[np.uint32]) -> deque[tuple[int, int]]:
    stamps = view[slots]
    order = np.argsort(stamps, kind="stable")
    return deque(zip(slots[order].tolist(), stamps[order].tolist(), strict=True))


def _guess(view: npt.NDArray[np.uint32], after: int, wanted: int) -> int:
    """Return a stamp below which about `wanted` stamps above `after` lie; 0 for few slots.

    From a sample, which is far cheaper than a partition of millions.
    """
    if len(view) <= 4 * _SAMPLE:
        return 0
    sample = view[:: len(view) // _SAMPLE]
    living = np.sort(sample[sample > after])
    at = max(1, wanted * len(sample) // len(view))
    return int(living[at]) if at < len(living) else 0
