"""What is new in an access: chunks that were not read a moment ago.

A guest reads the same chunk many times in a row, and goes to and fro between a few. What predicts
is the order in which chunks come up, so that every arm looks at the same sequence without those
repetitions; it is worked out once for each access.
"""

from __future__ import annotations

from collections import OrderedDict

from cachefs.policy.prefetch.seam import Access, Image

RECENT = 256
"""Chunks that count as read a moment ago. 64 to 1,024 were tried; docs/decisions/0060."""

_MOST_CHUNKS = 64
"""Of one access; the rest of a longer one is a sequential stream, which is not for these arms."""


class Novelty:
    """The sequences of new chunks of the images that are open. Arms share one of these."""

    def __init__(self) -> None:
        self._recent: dict[Image, OrderedDict[int, None]] = {}
        self._access: Access | None = None
        self._fresh: list[int] = []

    def of(self, image: Image, access: Access) -> list[int]:
        """Return the new chunks of an access; asked again for the same one, the same answer."""
        if access is self._access:
            return self._fresh
        recent = self.recent(image)
        first, count = access.first, access.count
        fresh: list[int] = []
        for chunk in range(first, first + min(count, _MOST_CHUNKS)):
            if chunk in recent:
                recent.move_to_end(chunk)
            else:
                recent[chunk] = None
                fresh.append(chunk)
        while len(recent) > RECENT:
            recent.popitem(last=False)
        self._access, self._fresh = access, fresh
        return fresh

    def recent(self, image: Image) -> OrderedDict[int, None]:
        """Return the chunks of an image that were read a moment ago, the latest last."""
        recent = self._recent.get(image)
        if recent is None:
            recent = self._recent[image] = OrderedDict()
        return recent

    def forget(self, image: Image) -> None:
        """An image was closed."""
        self._recent.pop(image, None)
