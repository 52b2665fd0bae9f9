"""What every L2 is, and every wrapper around one: a place that has some frames and may fail.

A tier knows nothing of chunks but their ids, and nothing of frames but their bytes: whoever asks
verifies. Concurrency: any thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol


class FrameTier(Protocol):
    """Frames by chunk id.

    A frame that is not there is None; a tier that cannot say raises TierError. No call waits much
    longer than its `wait_s`.
    """

    def get(self, ids: Sequence[bytes], wait_s: float) -> list[bytes | None]:
        """Return the frames of chunks in the same order, None for those that are not here.

        Raises:
            TierError: it did not answer, or not in time.
        """
        ...

    def put(self, frames: Mapping[bytes, bytes], wait_s: float) -> int:
        """Write frames over whatever is there; returns how many the tier took.

        Raises:
            TierError: it took none, or did not answer.
        """
        ...

    def touch(self, ids: Sequence[bytes], wait_s: float) -> list[bool]:
        """Return which chunks are here, and let those live for another TTL.

        Raises:
            TierError: it did not answer.
        """
        ...

    def probe(self, wait_s: float) -> None:
        """Connect where that is to be done, and ask for a sign of life within `wait_s` after that.

        Raises:
            TierError: there was none.
        """
        ...

    def advice(self) -> str:
        """Return what the operator should change on the server; empty: nothing is known.

        Raises:
            TierError: it did not answer.
        """
        ...

    def interrupt(self) -> None:
        """End the calls under way in other threads: their callers have left."""
        ...

    def close(self) -> None:
        """Close the connections; a later call opens others."""
        ...
