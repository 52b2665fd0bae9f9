"""The protocol of slots, step by step as `board.h` has it, and ways to get it wrong."""

from __future__ import annotations

from collections.abc import Generator
from enum import Enum, auto

from tests.model.memory import Explorer, Fence, Load, Operation, Order, Program, Store, Value

Steps = Generator[Operation, Value, None]
Tag = tuple[int, int]
TAGS: dict[str, Tag] = {"A": (1, 1), "B": (2, 2), "mixed": (1, 2)}
"""Nobody ever fills `mixed`: it is one word of A and one of B."""
REFUSED = "refused"


class Wrong(Enum):
    """Mutations of the protocol. Each of them gives somebody wrong bytes."""

    NO_SECOND_LOOK = auto()
    SECOND_LOOK_WITHOUT_GENERATION = auto()
    SECOND_LOOK_WITHOUT_FENCE = auto()
    GENERATION_COUNTED_FIRST = auto()
    TAG_CLEARED_AFTER_REUSE = auto()
    FILLED_BEFORE_THE_BYTES = auto()
    FILLED_WITHOUT_RELEASE = auto()
    NOT_EMPTIED_BEFORE_REUSE = auto()
    NOT_COUNTED_IF_EMPTY = auto()
    """An empty slot is taken for one whose generation was counted: not so if its daemon died."""


class Slot:
    """Programs over one slot. `wrong`: the mutation, if any."""

    initial: dict[str, Value] = {  # noqa: RUF012
        "generation": 0,
        "tag0": 1,
        "tag1": 1,
        "bytes0": "A",
        "bytes1": "A",
    }

    def __init__(self, wrong: Wrong | None = None) -> None:
        self.wrong = wrong

    def write(self, chunk: str) -> Steps:
        """The slot is punched, then written in two parts; system calls are at least a release."""
        yield Store("bytes0", "zeros")
        yield Store("bytes0", chunk)
        yield Store("bytes1", chunk)

    def fill(self, chunk: str) -> Steps:
        order = Order.RELAXED if self.wrong is Wrong.FILLED_WITHOUT_RELEASE else Order.RELEASE
        yield Store("tag0", TAGS[chunk][0], order)
        yield Store("tag1", TAGS[chunk][1], order)

    def publish(self, chunk: str) -> Steps:
        """Fill, unless the slot says something; the daemon is the only writer."""
        tag = (yield Load("tag0")), (yield Load("tag1"))
        if tag == (0, 0):
            yield from self.fill(chunk)

    def empty(self) -> Steps:
        generation = yield Load("generation", Order.RELAXED)
        assert isinstance(generation, int)
        if self.wrong is Wrong.NOT_COUNTED_IF_EMPTY:
            tag = (yield Load("tag0", Order.RELAXED)), (yield Load("tag1", Order.RELAXED))
            if tag == (0, 0):
                return
        if self.wrong is Wrong.GENERATION_COUNTED_FIRST:
            yield Store("generation", generation + 1)
        yield Store("tag0", 0)
        yield Store("tag1", 0)
        if self.wrong is not Wrong.GENERATION_COUNTED_FIRST:
            yield Store("generation", generation + 1)
        yield Fence()

    def replace(self, chunk: str) -> Steps:
        """The slot gets another chunk."""
        if self.wrong is Wrong.TAG_CLEARED_AFTER_REUSE:
            yield Store("bytes0", chunk)
            yield from self.empty()
            yield Store("bytes1", chunk)
            yield from self.publish(chunk)
            return
        if self.wrong is not Wrong.NOT_EMPTIED_BEFORE_REUSE:
            yield from self.empty()
        if self.wrong is Wrong.FILLED_BEFORE_THE_BYTES:
            yield from self.publish(chunk)
            yield from self.write(chunk)
        else:
            yield from self.write(chunk)
            yield from self.publish(chunk)

    def look(self, chunk: str) -> Generator[Operation, Value, tuple[bool, Value]]:
        generation = yield Load("generation")
        is_held = (yield Load("tag0")) == TAGS[chunk][0] and (yield Load("tag1")) == TAGS[chunk][1]
        return is_held, generation

    def read(self, chunk: str) -> Generator[Operation, Value, tuple[str, object]]:
        """Return what was asked for and what was given: both halves' bytes, or REFUSED."""
        is_held, generation = yield from self.look(chunk)
        if not is_held:
            return chunk, REFUSED
        got = (yield Load("bytes0", Order.RELAXED)), (yield Load("bytes1", Order.RELAXED))
        if self.wrong is Wrong.NO_SECOND_LOOK:
            return chunk, got
        if self.wrong is not Wrong.SECOND_LOOK_WITHOUT_FENCE:
            yield Fence()
        is_held = (yield Load("tag0")) == TAGS[chunk][0] and (yield Load("tag1")) == TAGS[chunk][1]
        if self.wrong is not Wrong.SECOND_LOOK_WITHOUT_GENERATION:
            is_held = is_held and (yield Load("generation")) == generation
        return chunk, got if is_held else REFUSED

    # ---- daemons ----

    def daemon(self, chunks: str) -> Program:
        """A daemon that puts one chunk after the other into the slot."""

        def run() -> Steps:
            for chunk in chunks:
                yield from self.replace(chunk)

        return run

    def successor(self, chunk: str) -> Program:
        """It gives the slot out, the job fails half-way, and gives it out once more."""

        def run() -> Steps:
            if self.wrong is not Wrong.NOT_EMPTIED_BEFORE_REUSE:
                yield from self.empty()
            yield Store("bytes0", "B")
            yield from self.replace(chunk)

        return run

    def reader(self, chunk: str) -> Program:
        return lambda: self.read(chunk)


def is_right(result: object) -> bool:
    """Nobody gets anything but the chunk that was asked for."""
    if not isinstance(result, tuple):
        return True  # a daemon
    chunk, got = result
    return bool(got in (REFUSED, (chunk, chunk)))


def explorer(wrong: Wrong | None, chunk: str, chunks: str, deaths: int) -> Explorer:
    """One daemon and its successors over a slot that holds A, and one who reads `chunk`."""
    slot = Slot(wrong)
    programs = {
        "daemon": slot.daemon(chunks),
        "successor": slot.successor("A"),
        "reader": slot.reader(chunk),
    }
    return Explorer(
        Slot.initial,
        programs,
        ["daemon", "reader"],
        is_right,
        {"daemon": "successor", "successor": "successor"},
        deaths,
    )
