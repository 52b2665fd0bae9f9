"""A flight: one chunk on its way into L1, whoever waits for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from cachefs.errors import CachefsError
from cachefs.model.chunk import ChunkRef


@dataclass(slots=True, eq=False)
class Flight:
    """Ends with exactly one of: a slot that holds the chunk, its plain bytes, an error."""

    ref: ChunkRef
    chunk_bytes: int
    deadline_s: float
    is_kept: bool = True
    """Whether it is to land in a slot; else its bytes are for its readers only."""
    waiters: int = 0
    ended: trio.Event = field(default_factory=trio.Event)
    slot: int | None = None
    plain: bytes | None = None
    error: CachefsError | None = None
    outages: int = 0
    outage: str = ""
    """What the last one was, for those whose deadline comes before its end."""
    corruptions: int = 0
    follower: Flight | None = None
    """Of those who came after it had met wrong bytes: it begins if this one ends with an error."""
    ended_ahead: Callable[[Flight], None] | None = None
    """Of a flight that was begun before anybody asked: told of its end."""
    was_joined: bool = False
    """Somebody has asked since."""
    landed_in: int | None = None
    """The slot, also when nobody waits (and nobody pins it)."""
    job: int = -1
    """The number of the job that brings it, while nobody had asked."""

    def __str__(self) -> str:
        """As errors name it."""
        return f"chunk {self.ref.id.hex()[:16]}"

    def named(self, cause: str) -> str:
        """Return the cause of an error with the chunk that it is about."""
        return cause if cause.startswith(str(self)) else f"{self}: {cause}"
