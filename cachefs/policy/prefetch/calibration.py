"""Confidence that was measured: how often expectations of one kind came true.

An arm sorts what it expects into kinds (how often seen, how far ahead, ...). A sample of the
expectations is followed: the chunk is read within a horizon, or is not, whether or not anybody
fetched it; so an arm knows what it is worth before it costs a byte. What was fetched because of it
and judged weighs more as it comes in, because that is what the others had not fetched already.
"""

from __future__ import annotations

from collections import deque

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


class Calibration:
    """Counts for `kinds` kinds of expectations; each waits for `horizon` new chunks."""

    __slots__ = (
        "_came",
        "_counted",
        "_doubted",
        "_horizon",
        "_judged",
        "_order",
        "_pending",
        "_tick",
        "_turn",
        "_used",
        "_wished",
        "confidences",
    )

    def __init__(self, kinds: int, horizon: int = 1_024) -> None:
        self.confidences = [_PRIOR] * kinds
        """How often an expectation of each kind comes true."""
        self._horizon = horizon
        self._came = [_PRIOR * _PRIOR_COUNT] * kinds
        self._counted = [_PRIOR_COUNT] * kinds
        self._used = [0.0] * kinds
        self._judged = [0.0] * kinds
        self._pending: dict[int, tuple[int, int]] = {}
        """Chunk: kind, tick."""
        self._order: deque[tuple[int, int]] = deque()
        """Tick, chunk."""
        self._doubted: deque[tuple[int, int]] = deque()
        """The same, of those that may still come true soon."""
        self._wished: dict[int, tuple[int, int]] = {}
        self._tick = 0
        self._turn = 0

    def expect(self, chunk: int, kind: int, floor: float) -> float:
        """Note an expectation; returns its confidence, or 0 if it need not be said.

        It need not if it is below the floor, or was said lately.
        """
        self._turn += 1
        if (
            not self._turn & 3  # one of four is followed
            and chunk not in self._pending
            and len(self._order) < _MOST_PENDING
        ):
            self._pending[chunk] = (kind, self._tick)
            self._order.append((self._tick, chunk))
            self._doubted.append((self._tick, chunk))
        confidence = self.confidences[kind]
        if confidence < floor:
            return 0.0
        said = self._wished.get(chunk)
        if said is not None and self._tick - said[1] < _PATIENCE:
            return 0.0
        self._wished[chunk] = (kind, self._tick)
        if len(self._wished) > _MOST_PENDING:
            del self._wished[next(iter(self._wished))]
        return confidence

    def seen(self, chunk: int) -> None:
        """A new chunk was read."""
        self._tick = tick = self._tick + 1
        found = self._pending.pop(chunk, None)
        if found is not None:
            self._follow(found[0], came=1.0, counted=float(found[1] >= tick - _SOON))
        doubted = self._doubted
        while doubted and doubted[0][0] < tick - _SOON:
            since, late = doubted.popleft()
            missed = self._pending.get(late)
            if missed is not None and missed[1] == since:
                self._follow(missed[0], came=0.0, counted=1.0)
        order = self._order
        while order and order[0][0] < tick - self._horizon:
            since, late = order.popleft()
            missed = self._pending.get(late)
            if missed is not None and missed[1] == since:
                del self._pending[late]

    def judged(self, chunk: int, was_used: bool) -> None:
        """A chunk that was wished for was fetched, and was used or not."""
        said = self._wished.pop(chunk, None)
        if said is None:
            return
        kind = said[0]
        self._used[kind] += was_used
        self._judged[kind] += 1.0
        if self._judged[kind] > _MOST_JUDGED:
            self._used[kind] /= 2
            self._judged[kind] /= 2
        self._work_out(kind)

    def _follow(self, kind: int, came: float, counted: float) -> None:
        self._came[kind] += came
        self._counted[kind] += counted
        if self._counted[kind] > _MOST_FOLLOWED:
            self._came[kind] /= 2
            self._counted[kind] /= 2
        self._used[kind] *= _FADING
        self._judged[kind] *= _FADING
        self._work_out(kind)

    def _work_out(self, kind: int) -> None:
        followed = min(1.0, self._came[kind] / self._counted[kind])
        self.confidences[kind] = (followed * _TRUST + self._used[kind]) / (
            _TRUST + self._judged[kind]
        )
