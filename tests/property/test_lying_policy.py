"""Whatever an eviction policy names: no slot is free twice, and no chunk is lost by its mistake."""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from cachefs.daemon.cache import Cache
from cachefs.index.segments import INDEX_BITS, INDEX_MASK, slot_class
from cachefs.policy.evict.lru import Lru
from cachefs.policy.evict.order import Ticks
from cachefs.policy.evict.seam import Keep
from cachefs.tiers.slots import ClassSlots
from cachefs.units import KIB
from tests.caches import Plain, opened_cache, plain_chunk

QUOTA_BYTES = 256 * KIB
"""64 slots of 4 KiB."""
SIZES_BYTES = (4 * KIB, 8 * KIB)


class Liar(Lru):
    """LRU that names what it must not among what it may."""

    def __init__(self, choice: Random) -> None:
        super().__init__(Ticks())
        self.choice = choice
        self.named: list[int] = []

    def evict(self, count: int, keep: Keep) -> list[int]:
        never: Keep = lambda _: False  # noqa: E731 - pinned ones too
        honest = super().evict(count, keep if self.choice.random() < 0.5 else never)
        lies = [self.choice.randrange(-4, 80) for _ in range(self.choice.randrange(12))]
        self.named = honest + lies + honest[:2]
        self.choice.shuffle(self.named)
        return self.named

    def coldest_slot(self) -> int | None:
        return self.choice.choice([super().coldest_slot(), self.choice.randrange(-4, 500)])

    def coldest(self) -> int:
        return self.choice.randrange(1000)

    def holds(self, slot: int) -> bool:
        return self.choice.random() < 0.2 or super().holds(slot)


class Play:
    """A cache under a lying policy, with what is known of it by other means than its own."""

    def __init__(self, cache: Cache, choice: Random) -> None:
        self.cache = cache
        self.choice = choice
        self.filling: list[tuple[int, int]] = []
        """Slot, and bytes of its chunk."""
        self.landed: list[Plain] = []
        self.pinned: list[int] = []
        self.count = 0
        cache.l1.drop_stray = self._no_stray  # type: ignore[method-assign]

    def _no_stray(self, slot: int) -> None:
        raise AssertionError(f"slot {slot} was given up without a chunk")

    def resident(self) -> dict[int, Plain]:
        found = {}
        for plain in self.landed:
            placement = self.cache.l1.find(plain.ref.id)
            if placement is not None:
                assert placement.slot not in found, "two chunks share a slot"
                found[placement.slot] = plain
        return found

    async def keep(self) -> None:
        before = {slot: plain for slot, plain in self.resident().items() if slot in self.pinned}
        await self.cache.keeper._make_room()
        self.check()
        await self.cache.keeper.commit()
        after = self.resident()
        assert all(after.get(slot) is plain for slot, plain in before.items()), "a held chunk went"

    async def take(self) -> None:
        size = self.choice.choice(SIZES_BYTES)
        self.filling += [(slot, size) for slot in self.cache.l1.take_free(size, 3)]

    async def land(self) -> None:
        if not self.filling:
            return
        slot, size = self.filling.pop(self.choice.randrange(len(self.filling)))
        if self.choice.random() < 0.1:
            self.cache.l1.give_back(slot)
            return
        self.count += 1
        plain = plain_chunk(self.count, size)
        self.landed.append(plain)
        segment = self.cache.l1.classes[slot_class(slot)].segment
        assert os.pwrite(segment.fd, plain.data, segment.position(slot)) == size
        assert self.cache.l1.landed(slot, plain.ref.id, size) == slot

    async def hold(self) -> None:
        slots = list(self.resident())
        if slots:
            self.pinned.append(self.choice.choice(slots))
            self.cache.l1.pin(self.pinned[-1])

    async def let_go(self) -> None:
        if self.pinned:
            self.cache.l1.unpin(self.pinned.pop(self.choice.randrange(len(self.pinned))))

    async def drop(self) -> None:
        found = list(self.resident().items())
        if found:
            slot, plain = self.choice.choice(found)
            self.pinned = [other for other in self.pinned if other != slot or self._unpin(slot)]
            self.cache.l1.drop(plain.ref.id, slot)

    def _unpin(self, slot: int) -> bool:
        self.cache.l1.unpin(slot)
        return False

    async def use(self) -> None:
        numbers = self.choice.choices([*self.cache.l1.classes, 15], k=20)
        indexes = self.choice.choices([3, 40, 10**6], k=20)
        slots = [n << INDEX_BITS | index for n, index in zip(numbers, indexes, strict=True)]
        self.cache.l1.touch_many(np.array(slots, np.uint32))

    def check(self) -> None:
        resident = self.resident()
        emptied = self.cache.keeper._emptied
        free = [slot for held in self.cache.l1.classes.values() for slot in held.free]
        states = Counter([*free, *emptied, *resident, *(slot for slot, _ in self.filling)])
        assert [slot for slot, count in states.items() if count > 1] == []
        for number, held in self.cache.l1.classes.items():
            occupied = [slot for slot in resident if slot_class(slot) == number]
            assert held.occupied == len(occupied)
            assert all(held.is_occupied(slot) for slot in occupied)
            for slot in held.free:
                assert (slot & INDEX_MASK) // held.segment.extent_slots in held.extents

    def check_bytes(self) -> None:
        for slot, plain in self.resident().items():
            segment = self.cache.l1.classes[slot_class(slot)].segment
            found = os.pread(segment.fd, len(plain.data), segment.position(slot))
            assert found == plain.data


@contextmanager
def lied_to(choice: Random) -> Iterator[Play]:
    with TemporaryDirectory() as folder, opened_cache(Path(folder) / "c") as cache:
        cache.l1.quota_bytes = QUOTA_BYTES
        cache.l1.change_policy(lambda _: Liar(choice))
        yield Play(cache, choice)


ACTIONS: list[Callable[[Play], object]] = [
    *[Play.keep, Play.take, Play.land, Play.land, Play.land] * 3,
    *[Play.hold, Play.let_go, Play.drop, Play.use],
]


@settings(max_examples=60)
@given(st.integers(0, 2**32))
def test_no_slot_is_free_twice_whatever_the_policy_names(seed: int) -> None:
    choice = Random(seed)
    logging.disable(logging.ERROR)
    try:
        with lied_to(choice) as play:

            async def run() -> None:
                for size in SIZES_BYTES:
                    play.cache.l1.class_for(size)
                for _ in range(400):
                    await choice.choice(ACTIONS)(play)  # type: ignore[misc]
                    play.check()
                play.check_bytes()

            trio.run(run)
            metrics = play.cache.l1.metrics
            assert metrics.evicted_chunks > 0
            assert metrics.policy_errors > 0
            for slot in play.pinned:
                play.cache.l1.unpin(slot)
            for slot, _ in play.filling:
                play.cache.l1.give_back(slot)
    finally:
        logging.disable(logging.NOTSET)


def filled(play: Play, count: int) -> ClassSlots:
    """Fill slots until `count` are occupied; return the class."""

    async def run() -> None:
        play.cache.l1.class_for(4 * KIB)
        while len(play.resident()) < count:
            await play.cache.keeper._make_room()
            await play.cache.keeper.commit()
            play.filling = [(slot, 4 * KIB) for slot in play.cache.l1.take_free(4 * KIB, 1)]
            while play.filling:
                await play.land()

    trio.run(run)
    [held] = play.cache.l1.classes.values()
    return held


class Names(Lru):
    """Names what it was told to."""

    def __init__(self, named: list[int]) -> None:
        super().__init__(Ticks())
        self.named = named

    def evict(self, count: int, keep: Keep) -> list[int]:
        super().evict(len(self.named), lambda slot: slot not in self.named)
        return self.named


def test_what_must_not_be_named_is_left_counted_and_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with lied_to(Random(1)) as play:
        play.cache.l1.change_policy(lambda _: Lru(Ticks()))
        held = filled(play, 6)
        occupied = sorted(play.resident())
        [filling] = play.cache.l1.take_free(4 * KIB, 1)
        free = held.free[0]
        play.cache.l1.pin(occupied[2])
        first, second, pinned, third = (slot & INDEX_MASK for slot in occupied[:4])
        wrong = [-1, 10**9, free & INDEX_MASK, filling & INDEX_MASK, pinned, first]
        policy = Names([first, *wrong, second, third])
        held.change_policy(policy)
        caplog.clear()
        assert held.victims(2) == occupied[:2]
        assert play.cache.l1.metrics.policy_errors == len(wrong) + 1  # the third was not asked for
        assert [record.levelname for record in caplog.records] == ["ERROR"]
        assert policy.holds(pinned)
        assert policy.holds(third)
        held.change_policy(Names([-1]))
        held.victims(1)
        assert len(caplog.records) == 2  # another policy, another line
        play.cache.l1.unpin(occupied[2])
        play.cache.l1.give_back(filling)


def test_uses_of_slots_that_are_not_there_reach_no_policy() -> None:
    with lied_to(Random(1)) as play:
        play.cache.l1.change_policy(lambda _: Lru(Ticks()))
        held = filled(play, 3)
        first = min(play.resident())
        told: list[list[int]] = []
        held.policy.touch_many = lambda slots: told.append(slots.tolist())  # type: ignore[method-assign]
        wrong = [held.free[0], first + 10**6, 15 << INDEX_BITS]
        play.cache.l1.touch_many(np.array([*wrong, first, *wrong, first], np.uint32))
        assert told == [[first & INDEX_MASK] * 2]


def test_of_very_many_uses_the_policy_learns_from_the_newest() -> None:
    with lied_to(Random(1)) as play:
        play.cache.l1.change_policy(lambda _: Lru(Ticks()))
        held = filled(play, 3)
        one, two, three = sorted(play.resident())
        told: list[list[int]] = []
        renewed: list[list[int]] = []
        held.policy.touch_many = lambda slots: told.append(slots.tolist())  # type: ignore[method-assign]
        held.policy.renew_many = lambda slots: renewed.append(slots.tolist())  # type: ignore[method-assign]
        play.cache.l1.touch_many(np.array([one, two] + [three] * 1023, np.uint32))
        assert renewed == [[one & INDEX_MASK]]
        assert told == [[two & INDEX_MASK] + [three & INDEX_MASK] * 1023]


def test_a_chunk_that_is_dropped_twice_frees_its_slot_once() -> None:
    with lied_to(Random(1)) as play:
        held = filled(play, 2)
        slot = min(play.resident())
        assert held.emptied(slot)
        assert not held.emptied(slot)
        assert not held.emptied(held.free[0])
        assert held.occupied == 1
