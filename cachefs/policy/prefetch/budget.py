"""Budgets: how much may be fetched ahead and not be used yet, by arm, image and host. Pure.

What was fetched ahead counts from its request until it was used, given up or judged a waste. An
arm's part follows its accuracy: one that is always right may fill the host's budget, one that is
mostly wrong gets a trickle by which it can show that it has become better.

Accuracy is known late: what nobody reads is called a waste after two minutes. So arms that guess
have a venture in each image, too: what they have out or have lost there, a small share of what its
readers fetch. The replay has proof instead (proof.py), and runs have stakes (stakes.py).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from cachefs.units import MIB

_LEAST_TRUST = 1 / 64
_IMAGE_SHARE = 0.5
"""Of the host's budget, for one image: others want to run ahead, too."""
_VENTURED_SHARE = 1 / 100
"""Of the bytes that readers fetch, or use after they were fetched ahead."""
_LEAST_VENTURE_BYTES = MIB
_LEAST_VENTURE_CHUNKS = 4
_MOST_VENTURE_BYTES = 8 * MIB


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


class Venture:
    """What arms that guess may still have out of one image, in bytes."""

    __slots__ = ("_out_bytes", "room_bytes")

    def __init__(self, chunk_bytes: int) -> None:
        self.room_bytes = max(_LEAST_VENTURE_BYTES, _LEAST_VENTURE_CHUNKS * chunk_bytes)
        self._out_bytes = 0

    def earn(self, size_bytes: int) -> None:
        """Readers fetched so much, or used what had been fetched ahead."""
        earned = self.room_bytes + int(_VENTURED_SHARE * size_bytes)
        self.room_bytes = max(self.room_bytes, min(earned, _MOST_VENTURE_BYTES - self._out_bytes))

    def take(self, size_bytes: int) -> None:
        """Bytes were asked for."""
        self._out_bytes += size_bytes
        self.room_bytes -= size_bytes

    def give_back(self, size_bytes: int, *, is_lost: bool) -> None:
        """Bytes were used or did not come, or they are lost."""
        self._out_bytes -= size_bytes
        if not is_lost:
            self.room_bytes += size_bytes
