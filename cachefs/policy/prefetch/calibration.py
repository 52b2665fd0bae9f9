"""Confidence that was measured: how often expectations of one kind came true.

An arm sorts what it expects into kinds (how often seen, how far ahead, ...). A sample of the
expectations is followed: the chunk is read within a horizon, or is not, whether or not anybody
fetched it; so an arm knows what it is worth before it costs a byte. What was fetched because of it
and judged weighs more as it comes in, because that is what the others had not fetched already.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator

_MOST_FOLLOWED = 256.0
_MOST_JUDGED = 128.0
"""Counts are halved there: what was learned is forgotten in as many expectations, about."""
_FADING = 1 - 1 / 256
"""Of what was judged, with each followed expectation: an arm that fell silent is heard again."""
_PRIOR = 0.5
_PRIOR_COUNT = 2.0
_TRUST = 8.0
"""What was followed counts as much as so many that were judged."""
_MOST_PENDING = 8_192
_PATIENCE = 128
"""A wish is said again after so many new chunks: it may have been passed over."""
_SOON = 128
"""What did not come true within so many new chunks counts as wrong until it does. If it counted
only at the horizon, whoever reads at random what is known would be taken for right until then,
because what comes true by chance counts at once."""


class _Record:
    """Of one kind: how many were followed and came, and how many were judged and used."""

    __slots__ = ("came", "counted", "judged", "used")

    def __init__(self) -> None:
        self.came = _PRIOR * _PRIOR_COUNT
        self.counted = _PRIOR_COUNT
        self.used = 0.0
        self.judged = 0.0

    def confidence(self) -> float:
        followed = min(1.0, self.came / self.counted)
        return (followed * _TRUST + self.used) / (_TRUST + self.judged)


class Calibration:
    """Counts for `kinds` kinds of expectations; each waits for `horizon` new chunks."""

    __slots__ = (
        "_doubted",
        "_doubted_to",
        "_horizon",
        "_late_at",
        "_order",
        "_pending",
        "_records",
        "_tick",
        "_turn",
        "_wished",
        "confidences",
    )

    def __init__(self, kinds: int, horizon: int = 1_024) -> None:
        self.confidences = [_PRIOR] * kinds
        """How often an expectation of each kind comes true."""
        self._records = [_Record() for _ in range(kinds)]
        self._horizon = horizon
        self._pending: dict[int, tuple[int, int]] = {}
        """Chunk: kind, tick."""
        self._order: deque[tuple[int, int]] = deque()
        """Tick, chunk."""
        self._doubted: deque[tuple[int, int]] = deque()
        """The same, of those that may still come true soon."""
        self._doubted_to = 0
        """What is older than this tick, and still pending, counts as wrong already."""
        self._late_at = 0
        """Nothing of either is late before this tick."""
        self._wished: OrderedDict[int, tuple[int, int]] = OrderedDict()
        """Chunk: kind, tick."""
        self._tick = 0
        self._turn = 0

    def expect(self, expected: Iterable[tuple[int, int]], floor: float) -> list[tuple[int, float]]:
        """Note expectations: chunks and their kinds.

        Returns those that are to be said, with their confidences: what is below the floor, or was
        said lately, need not be.
        """
        confidences, wished = self.confidences, self._wished
        turn, tick = self._turn, self._tick
        lately = tick - _PATIENCE
        said: list[tuple[int, float]] = []
        for chunk, kind in expected:
            turn += 1
            if not turn & 3:  # one of four is followed
                self._follow_up(chunk, kind)
            confidence = confidences[kind]
            if confidence < floor:
                continue
            before = wished.get(chunk)
            if before is None or before[1] <= lately:
                wished[chunk] = kind, tick
                said.append((chunk, confidence))
        self._turn = turn
        while len(wished) > _MOST_PENDING:
            wished.popitem(last=False)
        return said

    def seen(self, chunks: list[int]) -> None:
        """New chunks were read."""
        pending = self._pending
        for chunk in chunks:
            if chunk in pending:
                kind, since = pending.pop(chunk)
                self._count(kind, came=1.0, counted=float(since >= self._doubted_to))
        self._tick += len(chunks)
        if self._tick > self._late_at:
            self._give_up()

    def judged(self, chunk: int, was_used: bool) -> None:
        """A chunk that was wished for was fetched, and was used or not."""
        said = self._wished.pop(chunk, None)
        if said is None:
            return
        kind = said[0]
        record = self._records[kind]
        record.used += was_used
        record.judged += 1.0
        if record.judged > _MOST_JUDGED:
            record.used /= 2
            record.judged /= 2
        self.confidences[kind] = record.confidence()

    def _follow_up(self, chunk: int, kind: int) -> None:
        """See whether an expectation comes true."""
        if chunk not in self._pending and len(self._order) < _MOST_PENDING:
            self._pending[chunk] = kind, self._tick
            self._order.append((self._tick, chunk))
            self._doubted.append((self._tick, chunk))

    def _give_up(self) -> None:
        """Count what did not come soon, and wait no longer for what did not come at all."""
        self._doubted_to = self._tick - _SOON
        for chunk in self._late(self._doubted, self._doubted_to):
            self._count(self._pending[chunk][0], came=0.0, counted=1.0)
        for chunk in self._late(self._order, self._tick - self._horizon):
            del self._pending[chunk]
        oldest = self._doubted[0][0] if self._doubted else self._tick
        self._late_at = oldest + _SOON
        if self._order:
            self._late_at = min(self._late_at, self._order[0][0] + self._horizon)

    def _late(self, order: deque[tuple[int, int]], tick: int) -> Iterator[int]:
        """Take what is older than a tick out of an order; yields what is pending of it."""
        while order and order[0][0] < tick:
            since, chunk = order.popleft()
            missed = self._pending.get(chunk)
            if missed is not None and missed[1] == since:
                yield chunk

    def _count(self, kind: int, *, came: float, counted: float) -> None:
        record = self._records[kind]
        record.came += came
        record.counted += counted
        if record.counted > _MOST_FOLLOWED:
            record.came /= 2
            record.counted /= 2
        record.used *= _FADING
        record.judged *= _FADING
        self.confidences[kind] = record.confidence()
