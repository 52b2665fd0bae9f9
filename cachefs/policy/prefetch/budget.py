"""Budgets: how much may be fetched ahead and not be used yet, by arm, image and host. Pure.

What was fetched ahead counts from its request until it was used, given up or judged a waste. An
arm's part follows its accuracy: one that is always right may fill the host's budget, one that is
mostly wrong gets a trickle by which it can show that it has become better.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

_LEAST_TRUST = 1 / 64
_IMAGE_SHARE = 0.5
"""Of the host's budget, for one image: others want to run ahead, too."""


@dataclass(slots=True)
class Budget:
    """What is out now, in bytes of chunks; `host_bytes` is the most."""

    host_bytes: int
    out_bytes: int = 0
    by_arm: Counter[str] = field(default_factory=Counter)
    by_image: Counter[int] = field(default_factory=Counter)

    def room_bytes(self, arm: str, image: int, trust: float) -> int:
        """Return how much an arm may still fetch of an image; `trust`: its accuracy, 0 to 1."""
        arm_bytes = int(self.host_bytes * min(1.0, max(_LEAST_TRUST, trust)))
        image_bytes = int(self.host_bytes * _IMAGE_SHARE)
        return max(
            0,
            min(
                self.host_bytes - self.out_bytes,
                arm_bytes - self.by_arm[arm],
                image_bytes - self.by_image[image],
            ),
        )

    def take(self, arm: str, image: int, size_bytes: int) -> None:
        """Bytes were asked for."""
        self._add(arm, image, size_bytes)

    def give_back(self, arm: str, image: int, size_bytes: int) -> None:
        """Bytes were used, or judged, or did not come."""
        self._add(arm, image, -size_bytes)

    def _add(self, arm: str, image: int, size_bytes: int) -> None:
        self.out_bytes += size_bytes
        self.by_arm[arm] += size_bytes
        self.by_image[image] += size_bytes
        if not self.by_arm[arm]:
            del self.by_arm[arm]
        if not self.by_image[image]:
            del self.by_image[image]
