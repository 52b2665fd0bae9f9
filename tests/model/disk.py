"""A read past the page cache: one thread looks and asks, the disk reads, another looks again."""

from __future__ import annotations

from collections.abc import Generator
from enum import Enum, auto

from tests.model.memory import Explorer, Fence, Load, Operation, Order, Store, Value
from tests.model.slots import REFUSED, TAGS, Slot, is_right

Steps = Generator[Operation, Value, None]


class Wrong(Enum):
    """Mutations of the protocol. Each of them gives somebody wrong bytes."""

    ASKED_WITHOUT_ORDER = auto()
    """The disk may read what was there before the look."""
    DONE_WITHOUT_ORDER = auto()
    """Who hears that it is done does not see what had to be said before the bytes were written:
    the kernel's locks and a disk that answers in the order of causes see to that."""
    NO_SECOND_LOOK = auto()
    SECOND_LOOK_BEFORE_IT_IS_DONE = auto()
    SECOND_LOOK_WITHOUT_ITS_GENERATION = auto()
    """The finisher knows the tag, but not which generation the reader saw."""


class DiskRead:
    """Programs over one slot and one read of it, that any of them may be slow about."""

    initial: dict[str, Value] = {  # noqa: RUF012
        **Slot.initial,
        "seen": 0,
        "asked": 0,
        "got0": "nothing",
        "got1": "nothing",
        "done": 0,
    }

    def __init__(self, chunk: str, wrong: Wrong | None = None) -> None:
        self.chunk = chunk
        self.wrong = wrong
        self.slot = Slot()

    def reader(self) -> Steps:
        is_held, generation = yield from self.slot.look(self.chunk)
        if is_held:
            is_loose = self.wrong is Wrong.ASKED_WITHOUT_ORDER
            yield Store("seen", generation, Order.RELAXED)
            yield Store("asked", 1, Order.RELAXED if is_loose else Order.RELEASE)

    def disk(self) -> Steps:
        yield Load("asked", only=1)
        for half in ("0", "1"):
            byte = yield Load(f"bytes{half}", Order.RELAXED)
            yield Store(f"got{half}", byte, Order.RELAXED)
        if self.wrong is not Wrong.DONE_WITHOUT_ORDER:
            yield Fence()
        yield Store("done", 1)

    def finisher(self) -> Generator[Operation, Value, tuple[str, object]]:
        if self.wrong is Wrong.SECOND_LOOK_BEFORE_IT_IS_DONE:
            yield Load("asked", only=1)
            is_unchanged = yield from self.second_look()
            yield Load("done", only=1)
        else:
            yield Load("done", only=1)
            is_unchanged = yield from self.second_look()
        got = (yield Load("got0", Order.RELAXED)), (yield Load("got1", Order.RELAXED))
        return self.chunk, got if is_unchanged else REFUSED

    def second_look(self) -> Generator[Operation, Value, bool]:
        if self.wrong is Wrong.NO_SECOND_LOOK:
            return True
        seen = yield Load("seen", Order.RELAXED)
        yield Fence()
        tag = (yield Load("tag0")), (yield Load("tag1"))
        generation = yield Load("generation")
        if self.wrong is Wrong.SECOND_LOOK_WITHOUT_ITS_GENERATION:
            seen = generation
        return tag == TAGS[self.chunk] and generation == seen


def explorer(wrong: Wrong | None, chunk: str, chunks: str, deaths: int) -> Explorer:
    """A daemon puts `chunks` into the slot that holds A, while `chunk` is read from the disk."""
    read = DiskRead(chunk, wrong)
    programs = {
        "daemon": read.slot.daemon(chunks),
        "successor": read.slot.successor("A"),
        "reader": read.reader,
        "disk": read.disk,
        "finisher": read.finisher,
    }
    return Explorer(
        DiskRead.initial,
        programs,
        ["daemon", "reader", "disk", "finisher"],
        is_right,
        {"daemon": "successor", "successor": "successor"},
        deaths,
    )
