"""Reads the body of an answer: as much as was promised, and not for longer than allowed."""

from __future__ import annotations

import time
from typing import Protocol

from cachefs.errors import StoreUnavailableError
from cachefs.units import KIB

_PIECE_BYTES = 256 * KIB
"""Between two looks at the clock; larger ones are no faster."""


class Stream(Protocol):
    """What a body is read from."""

    def read(self, amt: int) -> bytes:
        """Return the next bytes, at most so many; none at the end."""
        ...


def read_body(stream: Stream, wanted_bytes: int | None, give_up_s: float, what: str) -> bytes:
    """Return `wanted_bytes` of a body, or all of it for None.

    Args:
        stream: The body.
        wanted_bytes: How many; what comes behind them is left unread.
        give_up_s: When to give up, on the clock of time.monotonic.
        what: What is read, for the message.

    Raises:
        StoreUnavailableError: it ended early, or it took too long.
    """
    parts: list[bytes] = []
    at = 0
    while wanted_bytes is None or at < wanted_bytes:
        piece_bytes = _PIECE_BYTES
        if wanted_bytes is not None:
            piece_bytes = min(piece_bytes, wanted_bytes - at)
        part = stream.read(piece_bytes)
        if not part:
            break
        parts.append(part)
        at += len(part)
        if time.monotonic() > give_up_s:
            raise StoreUnavailableError(f"cannot {what}: the answer takes too long")
    if wanted_bytes is not None and at < wanted_bytes:
        raise StoreUnavailableError(
            f"cannot {what}: the answer ended after {at} of {wanted_bytes} bytes"
        )
    return parts[0] if len(parts) == 1 else b"".join(parts)
