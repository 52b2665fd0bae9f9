"""The protocol of images: an entry, its table, and a table's memory that goes to another image."""

from __future__ import annotations

from collections.abc import Generator
from enum import Enum, auto

from tests.model.memory import Explorer, Fence, Load, Operation, Order, Store, Value

Steps = Generator[Operation, Value, None]
REFUSED = "refused"
INODE = {"old": 7, "new": 8}


class Wrong(Enum):
    """Mutations of the protocol. Each of them gives somebody another image's chunks."""

    NO_SECOND_LOOK_AT_THE_TABLE = auto()
    TABLE_READ_WITHOUT_ORDER = auto()
    ENTRY_READ_WITHOUT_LOOK = auto()
    NOT_UNSET_BEFORE_REUSE = auto()
    TABLE_NOT_CLEARED_BEFORE_USE = auto()
    """A daemon that dies between unsetting and clearing leaves the old image's tags there."""


class Entry:
    """Programs over one entry and one table of one chunk, `tag` and `hint`, which `old` has."""

    initial: dict[str, Value] = {  # noqa: RUF012
        "generation": 1,
        "inode": 7,
        "size": "old",
        "tag": "old",
        "hint": "old",
    }

    def __init__(self, wrong: Wrong | None = None) -> None:
        self.wrong = wrong

    def unset(self) -> Steps:
        generation = yield Load("generation", Order.RELAXED)
        assert isinstance(generation, int)
        if generation % 2 and self.wrong is not Wrong.NOT_UNSET_BEFORE_REUSE:
            yield Store("generation", generation + 1)
        yield Fence()

    def clear(self) -> Steps:
        """Punch the table's memory out, hint and tag in any order: here the worse one."""
        yield Store("tag", 0)
        yield Store("hint", 0)

    def place(self, image: str, *, is_clear: bool) -> Steps:
        yield from self.unset()
        if not (is_clear and self.wrong is Wrong.TABLE_NOT_CLEARED_BEFORE_USE):
            yield from self.clear()
        yield Store("inode", INODE[image], Order.RELAXED)
        yield Store("size", image, Order.RELAXED)
        generation = yield Load("generation", Order.RELAXED)
        assert isinstance(generation, int)
        yield Store("generation", generation + 1)

    def publish(self, image: str) -> Steps:
        yield Store("tag", image)
        yield Store("hint", image)

    def daemon(self) -> Steps:
        """Take the place of `old` away and give it to `new`."""
        yield from self.unset()
        yield from self.clear()
        yield from self.place("new", is_clear=True)
        yield from self.publish("new")

    def successor(self) -> Steps:
        """Knows valid entries; memory of no valid entry it takes for free."""
        generation = yield Load("generation")
        inode = yield Load("inode")
        assert isinstance(generation, int)
        if generation % 2 == 0:
            yield from self.place("new", is_clear=True)
            inode = INODE["new"]
        if inode == INODE["new"]:
            yield from self.publish("new")

    def find(self, image: str) -> Generator[Operation, Value, tuple[bool, Value, Value]]:
        inode = yield Load("inode", Order.RELAXED)
        if inode != INODE[image]:
            return False, 0, 0
        generation = yield Load("generation")
        size = yield Load("size", Order.RELAXED)
        if self.wrong is Wrong.ENTRY_READ_WITHOUT_LOOK:
            return True, generation, size
        inode = yield Load("inode", Order.RELAXED)
        yield Fence()
        again = yield Load("generation", Order.RELAXED)
        assert isinstance(generation, int)
        is_it = inode == INODE[image] and generation % 2 == 1 and again == generation
        return is_it, generation, size

    def read(self, image: str) -> Generator[Operation, Value, tuple[str, object]]:
        """Return the image that was asked for, and its (size, tag, hint), or REFUSED."""
        is_found, generation, size = yield from self.find(image)
        if not is_found:
            return image, REFUSED
        is_loose = self.wrong is Wrong.TABLE_READ_WITHOUT_ORDER
        order = Order.RELAXED if is_loose else Order.ACQUIRE
        hint = yield Load("hint", order)
        tag = yield Load("tag", order)
        if 0 in {hint, tag}:
            return image, REFUSED
        if self.wrong is not Wrong.NO_SECOND_LOOK_AT_THE_TABLE:
            if not is_loose:
                yield Fence()
            if (yield Load("generation", Order.RELAXED)) != generation:
                return image, REFUSED
        return image, (size, tag)


def is_right(result: object) -> bool:
    """A read's size and tag are the image's own; its hint may be anybody's, as it is no promise."""
    if not isinstance(result, tuple):
        return True
    image, got = result
    return bool(got in (REFUSED, (image, image)))


def explorer(wrong: Wrong | None, image: str, deaths: int) -> Explorer:
    """The place of `old` goes to `new` while somebody reads `image`."""
    entry = Entry(wrong)
    return Explorer(
        Entry.initial,
        {
            "daemon": entry.daemon,
            "successor": entry.successor,
            "reader": lambda: entry.read(image),
        },
        ["daemon", "reader"],
        is_right,
        {"daemon": "successor", "successor": "successor"},
        deaths,
    )
