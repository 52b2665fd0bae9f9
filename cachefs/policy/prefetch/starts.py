"""The starts of an image that are remembered, and which of them a new one is like.

A row for each chunk that one of the last 16 starts touched, with a bit for each of these. Starts
are of different kinds (a boot, a resume of a snapshot, a look into the disk of another guest), so
what counts is not how many touched a chunk, but how many of the kind that this one is of: a mixture
of kinds, older and smaller ones worth less beforehand, in which each touch speaks for those that
had it and against the others. Within a kind the starts are a consensus: what only one of them did
is most often not done again, however alike both are otherwise, and chunks that are *not* touched
say so too late.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cachefs.policy.prefetch.learner import MOST_ROWS, SECTIONS, Rows, keys_at
from cachefs.policy.prefetch.seam import Image

Weights = npt.NDArray[np.float64]
"""(16,), of the starts, the newest first; the largest is 1."""

_Flags = npt.NDArray[np.bool_]

REMEMBERED = 16
LEAST_CONFIDENCE = 0.6
"""A chunk that is as certain is replayed."""
_ALIKE = 0.15
"""Starts that have so much of what either touched in common are of a kind."""
_AGEING = 0.8
"""What a start counts for beside the next one."""
_LEAST_CHUNKS = 16
"""A start that is not over and has touched fewer was a look."""
_PART = 0.8
"""If so much of it lies in one that is remembered, it is a part of that one and says nothing."""
_FOR, _AGAINST = np.log(0.9), np.log(0.1)
"""What a touch says of a kind one of whose starts had it, and of one of which none had."""
_MOST_DOUBT = 6.0
"""Evidence is held against a kind up to so much (of log likelihood): it may be of it after all."""
_MOST_TIMES = 4
"""A time is the mean of so many starts, about."""
_MOVED = 0.2
"""Weights that have changed by so much make another plan."""
_BITS = np.arange(REMEMBERED)
_SPREAD = np.array(
    [sum((value >> bit & 1) << 2 * bit for bit in range(8)) for value in range(256)], np.uint16
)
"""Of eight bits, the even ones of sixteen."""


def sound(rows: Rows) -> Rows:
    """Return rows without those that cannot be: each content once, of one start at least."""
    kept = rows[(rows["key"] != 0) & (rows["which"] != 0)]
    _, first = np.unique(kept["key"], return_index=True)
    sane: Rows = kept[np.sort(first)][:MOST_ROWS]
    return sane


def record_of(touched: dict[int, int], image: Image) -> Rows:
    """Return a record of one start as rows, in the order of time; `touched`: chunk -> ms."""
    rows = np.zeros(len(touched), SECTIONS["replay"])
    chunks = np.fromiter(touched, np.int64, len(touched))
    rows["key"] = keys_at(image, chunks)
    rows["place"] = np.minimum(chunks, 2**32 - 1)
    rows["time_ms"] = np.minimum(np.fromiter(touched.values(), np.int64, len(touched)), 2**32 - 1)
    rows["which"] = 1
    return sound(rows)


def folded(known: Rows, record: Rows, *, is_whole: bool = True) -> Rows:
    """Return what is known after one more start, which may have ended early."""
    if not len(known):
        return record
    both, at_known, at_record = np.intersect1d(known["key"], record["key"], return_indices=True)
    if not is_whole:
        shared = _bits(known["which"][at_known]).sum(axis=0).max() if len(both) else 0
        if len(record) < _LEAST_CHUNKS or shared >= _PART * len(record):
            return known
    older = known.copy()
    times = _bits(older["which"][at_known]).sum(axis=1).clip(max=_MOST_TIMES).astype(np.float64)
    mean_ms = older["time_ms"][at_known] * times + record["time_ms"][at_record]
    older["time_ms"][at_known] = mean_ms / (times + 1)
    older["place"][at_known] = record["place"][at_record]
    older["which"] <<= 1
    older["which"][at_known] |= 1
    is_new = np.ones(len(record), np.bool_)
    is_new[at_record] = False
    return _bounded(np.concatenate((older[older["which"] != 0], record[is_new])))


def merged(mine: Rows, theirs: Rows) -> Rows:
    """Return what two hosts know: the last eight starts of each in turn."""
    mine, theirs = sound(mine), sound(theirs)
    if not len(mine) or not len(theirs):
        return mine if len(mine) else theirs
    _, at_mine, at_theirs = np.intersect1d(mine["key"], theirs["key"], return_indices=True)
    mine["which"] = _SPREAD[mine["which"] & 0xFF]
    theirs["which"] = _SPREAD[theirs["which"] & 0xFF] << 1
    mine["which"][at_mine] |= theirs["which"][at_theirs]
    is_new = np.ones(len(theirs), np.bool_)
    is_new[at_theirs] = False
    rows = np.concatenate((mine, theirs[is_new]))
    return _bounded(rows[rows["which"] != 0])


def starts_in(rows: Rows) -> int:
    """Return how many starts rows remember."""
    return int(np.bitwise_or.reduce(rows["which"])).bit_count() if len(rows) else 0


def kinds(rows: Rows) -> _Flags:
    """Return which starts are of each kind, (kinds, 16), that of the newest start first.

    Starts that share much with each other are of a kind, and those that share much with these.
    """
    bits = _bits(rows["which"]).astype(np.int64)
    both = bits.T @ bits
    sizes = both.diagonal()
    is_alike = both >= _ALIKE * np.maximum(1, sizes[:, None] + sizes - both)
    for _ in range(4):  # 2**4 steps from one to another, as many as there are starts
        is_alike = is_alike @ is_alike
    found = np.unique(is_alike[sizes > 0] & (sizes > 0), axis=0)
    return np.asarray(found[np.argsort(found.argmax(axis=1))], np.bool_)


def confidence_of(rows: Rows, weights: Weights | None = None) -> npt.NDArray[np.float64]:
    """Return how certain each chunk is to be touched, (n,): the share of the starts, weighed."""
    if not len(rows):
        return np.zeros(0)
    weights = Likeness(rows).weights() if weights is None else weights
    runs = weights.sum()
    seen = _bits(rows["which"]) @ weights
    share = (seen + 0.9 * seen / runs) / (runs + 1) + 0.1 * (seen >= runs - 1e-9) / (runs + 1)
    return np.asarray(np.clip(share, 0.0, 1.0))


class Likeness:
    """Which of the known kinds of starts the one of now is of."""

    def __init__(self, rows: Rows) -> None:
        of_kind = kinds(rows)
        sizes = np.array([_bits(rows["which"])[:, kind].sum(axis=0).max() for kind in of_kind])
        ages = np.where(of_kind, _AGEING**_BITS, 0.0)
        self._prior = ages.max(axis=1) * np.sqrt(sizes / max(1, sizes.max(initial=0)))
        self._ages = ages / np.maximum(ages.max(axis=1, keepdims=True), 1e-9)
        self._masks = of_kind @ (1 << _BITS)
        self._for = np.zeros(len(of_kind))
        """The evidence for each kind: log likelihoods."""
        self._has_news = False
        self._planned = self.weights()

    def touched(self, which: int) -> None:
        """A chunk was touched that these starts had."""
        if len(self._for) < 2:
            return
        self._for += np.where(which & self._masks, _FOR, _AGAINST)
        self._for -= self._for.max()
        np.maximum(self._for, -_MOST_DOUBT, out=self._for)
        self._has_news = True

    def weights(self) -> Weights:
        """Return what each start says of this one: of those of a kind, older ones less."""
        weights = (self._prior * np.exp(self._for)) @ self._ages
        return np.asarray(weights / max(weights.max(initial=0.0), 1e-9))

    def has_moved(self) -> bool:
        """Whether it has come to be like another than when this was last true."""
        if not self._has_news:
            return False
        self._has_news = False
        weights = self.weights()
        if np.abs(weights - self._planned).max() < _MOVED:
            return False
        self._planned = weights
        return True


def _bits(which: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint8]:
    """Return which of the starts, (n, 16)."""
    little = np.ascontiguousarray(which.astype("<u2")).view(np.uint8).reshape(-1, 2)
    return np.unpackbits(little, axis=1, bitorder="little")


def _bounded(rows: Rows) -> Rows:
    """Return the likeliest rows, in the order of time."""
    if len(rows) > MOST_ROWS:
        rows = rows[np.argsort(-confidence_of(rows), kind="stable")[:MOST_ROWS]]
    return rows[np.argsort(rows["time_ms"], kind="stable")]
