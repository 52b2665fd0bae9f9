"""Small caches that only count: policies of the literature over keys, for the guard to compare.

They make the same choices as the policies of their names (a test says so), over dicts, which for
some hundred keys is several times faster than arrays for millions of slots.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Protocol


class Shadow(Protocol):
    """One policy over a sample of the chunks."""

    def resize(self, slots: int) -> None:
        """Hold so many chunks from now on."""
        ...

    def use_many(self, keys: Iterable[int]) -> list[bool]:
        """Use chunks in this order; returns which were there. Each is afterwards."""
        ...

    @property
    def main_share(self) -> float:
        """Of what it holds, the part that is past its probation."""
        ...


class LruShadow:
    """See lru.py."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._held: OrderedDict[int, None] = OrderedDict()

    def resize(self, slots: int) -> None:
        """See Shadow."""
        self._slots = slots

    def use_many(self, keys: Iterable[int]) -> list[bool]:
        """See Shadow."""
        held, slots, found = self._held, self._slots, []
        for key in keys:
            if key in held:
                held.move_to_end(key)
                found.append(True)
                continue
            while len(held) >= slots:
                held.popitem(last=False)
            held[key] = None
            found.append(False)
        return found

    @property
    def main_share(self) -> float:
        """See Shadow."""
        return 1.0


class TwoQShadow:
    """See twoq.py."""

    def __init__(self, slots: int) -> None:
        self._new: OrderedDict[int, None] = OrderedDict()
        self._main: OrderedDict[int, None] = OrderedDict()
        self._ghosts: OrderedDict[int, None] = OrderedDict()
        self.resize(slots)

    def resize(self, slots: int) -> None:
        """See Shadow."""
        self._slots, self._most_new, self._most_ghosts = slots, slots // 4, slots // 2

    def use_many(self, keys: Iterable[int]) -> list[bool]:
        """See Shadow."""
        main, new, found = self._main, self._new, []
        for key in keys:
            if key in main:
                main.move_to_end(key)
                found.append(True)
            elif key in new:
                found.append(True)
            else:
                self._miss(key)
                found.append(False)
        return found

    @property
    def main_share(self) -> float:
        """See Shadow."""
        return len(self._main) / max(1, len(self._main) + len(self._new))

    def _miss(self, key: int) -> None:
        new, main, ghosts = self._new, self._main, self._ghosts
        while len(new) + len(main) >= self._slots:
            if len(new) > self._most_new or not main:
                ghosts[new.popitem(last=False)[0]] = None
            else:
                main.popitem(last=False)
        if key in ghosts:
            del ghosts[key]
            main[key] = None
        else:
            new[key] = None
        while len(ghosts) > self._most_ghosts:
            ghosts.popitem(last=False)


class S3FifoShadow:
    """See s3fifo.py."""

    def __init__(self, slots: int) -> None:
        self._small: OrderedDict[int, int] = OrderedDict()
        self._main: OrderedDict[int, int] = OrderedDict()
        """Keys and how often they were used, 3 at most."""
        self._ghosts: OrderedDict[int, None] = OrderedDict()
        self._has_evicted = False
        self.resize(slots)

    def resize(self, slots: int) -> None:
        """See Shadow."""
        self._slots, self._most_small, self._most_ghosts = slots, slots // 10, slots * 9 // 10

    def use_many(self, keys: Iterable[int]) -> list[bool]:
        """See Shadow."""
        main, small, found = self._main, self._small, []
        for key in keys:
            queue = main if key in main else small
            uses = queue.get(key)
            if uses is None:
                self._miss(key)
                found.append(False)
                continue
            if uses < 3:
                queue[key] = uses + 1
            found.append(True)
        return found

    @property
    def main_share(self) -> float:
        """See Shadow."""
        return len(self._main) / max(1, len(self._main) + len(self._small))

    def _miss(self, key: int) -> None:
        ghosts = self._ghosts
        while len(self._small) + len(self._main) >= self._slots:
            self._evict()
        is_early = not self._has_evicted and len(self._small) >= self._most_small
        if key in ghosts:
            del ghosts[key]
            self._main[key] = 0
        else:
            (self._main if is_early else self._small)[key] = 0
        while len(ghosts) > self._most_ghosts:
            ghosts.popitem(last=False)

    def _evict(self) -> None:
        small, main = self._small, self._main
        self._has_evicted = True
        is_main = len(main) > self._slots - self._most_small
        while small and not is_main:
            key, uses = small.popitem(last=False)
            if uses < 2:
                self._ghosts[key] = None
                return
            main[key] = 0
        while True:
            key, uses = main.popitem(last=False)
            if not uses:
                return
            main[key] = uses - 1


SHADOWS: dict[str, Callable[[int], Shadow]] = {
    "lru": LruShadow,
    "2q": TwoQShadow,
    "s3fifo": S3FifoShadow,
}
"""By the names of the policies."""
