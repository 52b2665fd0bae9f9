"""The arms that learn, as the daemon runs them."""

from __future__ import annotations

from cachefs.policy.prefetch.association import Association
from cachefs.policy.prefetch.markov import Markov
from cachefs.policy.prefetch.novelty import Novelty
from cachefs.policy.prefetch.recurrence import Recurrence
from cachefs.policy.prefetch.replay import Replay
from cachefs.policy.prefetch.seam import Arm


def learning_arms() -> list[Arm]:
    """Return new arms, those whose wishes are most often right first."""
    novelty = Novelty()
    return [Replay(), Recurrence(novelty), Markov(novelty), Association(novelty)]
