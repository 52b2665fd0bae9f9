"""Clusters: images whose starts are alike lend each other profiles.

A sketch of a profile is the bottom of its content keys under a hash (Broder's minhash, one
permutation), 128 of them at most. Two sketches tell how alike two profiles are; a sketch and an
image tell how much of a profile the image has, before it was ever read.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from cachefs.policy.prefetch.learner import Rows
from cachefs.policy.prefetch.seam import Image, Keys
from cachefs.policy.prefetch.starts import LEAST_CONFIDENCE, confidence_of

SKETCH_KEYS = 128
LEAST_SHARE = 0.25
"""An image that has less of a profile than that is no neighbour: what is lent is what it has."""

_LEAST_KEYS = 16
"""Fewer keys say nothing."""
_MIXES = np.array([0xBF58476D1CE4E5B9, 0x94D049BB133111EB], np.uint64)


def sketch_of(replay: Rows) -> Keys:
    """Return the sketch of what a profile is certain of, in the order of the hash."""
    certain = replay[confidence_of(replay) >= LEAST_CONFIDENCE]
    keys = np.unique(certain["key"][certain["key"] != 0])
    return np.asarray(keys[np.argsort(_hashed(keys), kind="stable")[:SKETCH_KEYS]])


def resemblance(one: Keys, other: Keys) -> float:
    """Return about how much of what two profiles know both know: the Jaccard index."""
    if not len(one) or not len(other):
        return 0.0
    both = np.union1d(one, other)
    lowest = both[np.argsort(_hashed(both), kind="stable")[:SKETCH_KEYS]]
    return float(np.isin(lowest, np.intersect1d(one, other)).mean())


def neighbour(image: Image, sketches: Mapping[str, Keys]) -> tuple[str, float] | None:
    """Return the profile of which an image has most, and about how much; None if it has of none.

    `sketches`: by the name of the profile. Among equals it is the one with the more certain keys.
    """
    best: tuple[float, int, str] | None = None
    for name in sorted(sketches):
        sketch = sketches[name]
        if len(sketch) < _LEAST_KEYS:
            continue
        share = float((image.find(sketch) >= 0).mean())
        if share >= LEAST_SHARE and (best is None or (share, len(sketch)) > best[:2]):
            best = share, len(sketch), name
    return (best[2], best[0]) if best is not None else None


def _hashed(keys: Keys) -> npt.NDArray[np.uint64]:
    """Content keys are hashes already, but of known content: mixed, so that nobody can aim."""
    mixed = keys ^ (keys >> np.uint64(30))
    mixed = mixed * _MIXES[0]
    mixed ^= mixed >> np.uint64(27)
    return np.asarray(mixed * _MIXES[1], np.uint64)
