"""The arms that learn, as the daemon runs them."""

from __future__ import annotations

from collections.abc import Sequence

from cachefs.policy.prefetch.association import Association
from cachefs.policy.prefetch.learner import Learner
from cachefs.policy.prefetch.lstm import Lstm, Weights
from cachefs.policy.prefetch.markov import Markov
from cachefs.policy.prefetch.novelty import Novelty
from cachefs.policy.prefetch.recurrence import Recurrence
from cachefs.policy.prefetch.replay import Replay
from cachefs.policy.prefetch.seam import Arm

NAMES = ("replay", "recurrence", "markov", "association")
"""Those that need nothing but accesses; what they wish for is most often right first."""


def learning_arms(names: Sequence[str] = NAMES, weights: Weights | None = None) -> list[Arm]:
    """Return new arms of these names; `weights` are the LSTM's."""
    novelty = Novelty()
    made: list[Arm] = [
        Replay(),
        Recurrence(novelty),
        Markov(novelty),
        Association(novelty),
        Lstm(novelty, weights=weights),
    ]
    return [arm for arm in made if arm.name in names]


def learners(arms: Sequence[Arm]) -> list[Learner]:
    """Return the arms whose knowledge outlives an image being open."""
    return [arm for arm in arms if isinstance(arm, Replay | Recurrence | Markov | Association)]
