"""A segment file that is replaced by another one, in the lane by dup2, while slots are read."""

from __future__ import annotations

from collections.abc import Generator
from enum import Enum, auto

from tests.model.memory import Explorer, Load, Operation, Order, Store, Value
from tests.model.slots import REFUSED, TAGS, Slot, is_right

Steps = Generator[Operation, Value, None]
ADOPTED = "inode of new"


class Wrong(Enum):
    """Mutations of the protocol. Each of them gives somebody another file's bytes."""

    FILLED_BEFORE_ADOPTED = auto()
    NOT_EMPTIED_BEFORE_OFFERED = auto()
    SAID_BEFORE_DUP = auto()
    """The lane says that it has the file before it has."""


class Replacement:
    """Programs over one slot, two files and the number under which the lane has one of them."""

    initial: dict[str, Value] = {  # noqa: RUF012
        **Slot.initial,
        "new bytes": "zeros",
        "fd": "old",
        "inode": "inode of old",
        "offer": 0,
    }

    def __init__(self, wrong: Wrong | None = None) -> None:
        self.wrong = wrong
        self.slot = Slot()

    def daemon(self) -> Steps:
        """Its folder has a new file; what the board says of the slot was said of the old one."""
        if self.wrong is not Wrong.NOT_EMPTIED_BEFORE_OFFERED:
            yield from self.slot.empty()
        yield Store("offer", 1)
        yield from self.slot.empty()  # it gives the slot out
        yield Store("new bytes", "B")
        if self.wrong is not Wrong.FILLED_BEFORE_ADOPTED:
            yield Load("inode", only=ADOPTED)
        yield from self.slot.publish("B")

    def lane(self) -> Steps:
        yield Load("offer", only=1)
        yield Store("inode", 0)
        if self.wrong is Wrong.SAID_BEFORE_DUP:
            yield Store("inode", ADOPTED)
        yield Store("fd", "new")
        if self.wrong is not Wrong.SAID_BEFORE_DUP:
            yield Store("inode", ADOPTED)

    def read(self, chunk: str) -> Generator[Operation, Value, tuple[str, object]]:
        is_held, generation = yield from self.slot.look(chunk)
        if not is_held:
            return chunk, REFUSED
        file = yield Load("fd")  # the kernel looks the number up
        got = yield Load("bytes0" if file == "old" else "new bytes", Order.RELAXED)
        is_held, again = yield from self.second_look(chunk)
        return chunk, (got, got) if is_held and again == generation else REFUSED

    def second_look(self, chunk: str) -> Generator[Operation, Value, tuple[bool, Value]]:
        is_held = (yield Load("tag0")) == TAGS[chunk][0] and (yield Load("tag1")) == TAGS[chunk][1]
        return is_held, (yield Load("generation"))


def explorer(wrong: Wrong | None, chunk: str) -> Explorer:
    """The lane changes files under one who reads `chunk`."""
    replacement = Replacement(wrong)
    return Explorer(
        Replacement.initial,
        {
            "daemon": replacement.daemon,
            "lane": replacement.lane,
            "reader": lambda: replacement.read(chunk),
        },
        ["daemon", "lane", "reader"],
        is_right,
    )
