"""The plan: what all arms wish for, in the order in which it is to be fetched. Pure.

Wishes wait here as pieces of images. What is fetched next is decided when there is a place for it,
so a piece that was taken back, or that somebody has read meanwhile, costs nothing. What is
resident or under way is left out by whoever takes the pieces.
"""

from __future__ import annotations

from dataclasses import dataclass

from cachefs.policy.prefetch.seam import Wish

MOST_PIECES = 4096
"""Of one image; the least likely go. An arm that wishes for more does not know what it wants."""

_PATIENCE_S = 30.0
"""A piece that no place was found for within so long after it was due is given up."""


@dataclass(slots=True)
class Piece:
    """Chunks that are to be fetched: `count` from `first` on."""

    first: int
    count: int
    arm: str
    stream: int
    confidence: float
    due_s: float
    """On the clock of the accesses."""
    serial: int

    @property
    def order(self) -> tuple[float, float, int]:
        """What is due first goes first; then what is likelier, then what was wished for first."""
        return (self.due_s, -self.confidence, self.serial)


class Plan:
    """The pieces of one image."""

    def __init__(self) -> None:
        self._pieces: list[Piece] = []
        self._serial = 0

    def __len__(self) -> int:
        return len(self._pieces)

    @property
    def chunks(self) -> int:
        """How many chunks wait, those counted twice that two arms wished for."""
        return sum(piece.count for piece in self._pieces)

    def add(self, arm: str, wish: Wish, now_s: float) -> None:
        """Take a wish of an arm, or take one back."""
        if not wish.count:
            self._pieces = [
                piece
                for piece in self._pieces
                if piece.arm != arm or piece.stream != wish.stream or not wish.stream
            ]
            return
        due_s = now_s + wish.due_s
        last = self._pieces[-1] if self._pieces else None
        if (
            last is not None
            and wish.stream
            and (last.arm, last.stream) == (arm, wish.stream)
            and last.first + last.count == wish.first
        ):
            last.count += wish.count
            return
        self._serial += 1
        confidence = min(1.0, max(0.0, wish.confidence))
        self._pieces.append(
            Piece(wish.first, wish.count, arm, wish.stream, confidence, due_s, self._serial)
        )
        if len(self._pieces) > MOST_PIECES:
            self._pieces.sort(key=lambda piece: piece.confidence, reverse=True)
            del self._pieces[MOST_PIECES // 2 :]
            self._pieces.sort(key=lambda piece: piece.serial)

    def first(self, now_s: float, arms: set[str]) -> Piece | None:
        """Return the piece that is next among those of these arms; it stays."""
        if any(piece.due_s + _PATIENCE_S < now_s for piece in self._pieces):
            self._pieces = [p for p in self._pieces if p.due_s + _PATIENCE_S >= now_s]
        mine = [piece for piece in self._pieces if piece.arm in arms]
        return min(mine, key=lambda piece: piece.order) if mine else None

    def took(self, piece: Piece, count: int) -> None:
        """The first `count` chunks of a piece are dealt with."""
        piece.first += count
        piece.count -= count
        if piece.count <= 0:
            self._pieces.remove(piece)

    def clear(self) -> None:
        """Nobody wants any of it any more."""
        self._pieces.clear()
