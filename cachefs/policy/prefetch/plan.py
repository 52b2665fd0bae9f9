"""The plan: what all arms wish for, in the order in which it is to be fetched. Pure.

Wishes wait here as pieces of an image. What is fetched next is decided when there is a place for
it, so a piece that was taken back, or that somebody has read meanwhile, costs nothing. What is
resident or under way is left out by whoever takes the pieces.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field

from cachefs.policy.prefetch.seam import Wish

MOST_PIECES = 4096
"""Of one arm and image; the least likely go. An arm that wishes for more does not know what it
wants."""

_PATIENCE_S = 30.0
"""A piece that no place was found for within so long after it was due is given up."""

_MOST_OF_A_STREAM = 64
"""Pieces: a stride that nothing could be fetched for has left the first of them behind."""

_Key = tuple[str, int]


@dataclass(slots=True, order=True)
class Piece:
    """Chunks that are to be fetched: `count` from `first` on; with a count of 0 it is done.

    In order of what is due first, then of what is likelier, then of what was wished for first.
    """

    due_s: float
    """On the clock of whoever plans."""
    doubt: float
    """1 less the confidence."""
    serial: int
    first: int = field(compare=False)
    count: int = field(compare=False)
    arm: str = field(compare=False)
    stream: int = field(compare=False)


class Plan:
    """The pieces of one image."""

    def __init__(self) -> None:
        self._heaps: dict[str, list[Piece]] = {}
        """By arm; pieces that are done lie there until they come up."""
        self._streams: dict[_Key, list[Piece]] = {}
        """Those of streams, the last one at the end."""
        self._serial = 0
        self.chunks = 0
        """How many chunks wait, those counted twice that two arms wished for."""

    def __bool__(self) -> bool:
        return self.chunks > 0

    def add(self, arm: str, wish: Wish, now_s: float) -> None:
        """Take a wish of an arm, or take one back."""
        key = arm, wish.stream
        if not wish.count:
            for piece in self._streams.pop(key, ()):
                self._end(piece)
            return
        mine = self._streams.get(key) if wish.stream else None
        if mine and mine[-1].first + mine[-1].count == wish.first and mine[-1].count:
            mine[-1].count += wish.count
            self.chunks += wish.count
            return
        self._serial += 1
        doubt = 1 - min(1.0, max(0.0, wish.confidence))
        piece = Piece(
            now_s + wish.due_s, doubt, self._serial, wish.first, wish.count, arm, wish.stream
        )
        self.chunks += piece.count
        heap = self._heaps.setdefault(arm, [])
        heapq.heappush(heap, piece)
        if wish.stream:
            mine = self._streams.setdefault(key, [])
            mine.append(piece)
            if len(mine) > _MOST_OF_A_STREAM:
                self._end(mine[0])
        if len(heap) > MOST_PIECES:
            self._shed(heap)

    def first(self, now_s: float, arms: Iterable[str]) -> Piece | None:
        """Return the piece that is next among those of these arms; it stays."""
        best = None
        for arm in arms:
            heap = self._heaps.get(arm, [])
            while heap and (not heap[0].count or heap[0].due_s + _PATIENCE_S < now_s):
                self._end(heapq.heappop(heap))
            if heap and (best is None or heap[0] < best):
                best = heap[0]
        return best

    def took(self, piece: Piece, count: int) -> None:
        """The first `count` chunks of a piece are dealt with."""
        count = min(count, piece.count)
        piece.first += count
        piece.count -= count
        self.chunks -= count
        if not piece.count:
            self._end(piece)

    def read(self, first: int, count: int) -> None:
        """Chunks were read: a stream that was not run ahead of in time must not be run after."""
        if not self._streams:
            return
        end = first + count
        for pieces in list(self._streams.values()):
            for piece in list(pieces):
                if first <= piece.first < end:
                    self.took(piece, end - piece.first)
                elif piece.first < first < piece.first + piece.count <= end:
                    less = piece.first + piece.count - first
                    piece.count -= less
                    self.chunks -= less

    def keep_only(self, arm: str) -> None:
        """Take back what all other arms wished for."""
        for name in self._heaps.keys() - {arm}:
            for piece in self._heaps.pop(name):
                self._end(piece)

    def clear(self) -> None:
        """Nobody wants any of it any more."""
        self._heaps.clear()
        self._streams.clear()
        self.chunks = 0

    def _end(self, piece: Piece) -> None:
        self.chunks -= piece.count
        piece.count = 0
        key = piece.arm, piece.stream
        mine = self._streams.get(key)
        if mine is not None:
            mine[:] = [other for other in mine if other is not piece]
            if not mine:
                del self._streams[key]

    def _shed(self, heap: list[Piece]) -> None:
        """Give up the less likely half."""
        for piece in sorted(heap, key=lambda piece: piece.doubt)[MOST_PIECES // 2 :]:
            self._end(piece)
        heap[:] = [piece for piece in heap if piece.count]
        heapq.heapify(heap)
