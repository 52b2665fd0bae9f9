"""Profiles of the store that are here before anybody opens their images.

A start that has to ask the store for its profile has lost a round trip, in which it waits for what
it needs first. So those of the newest images are asked for when the images are shown.

Concurrency: event loop.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import trio

from cachefs.errors import CachefsError
from cachefs.index.profiles import ProfileRows
from cachefs.tiers.jobs import ProfileFound, ProfileJob
from cachefs.tiers.pool import AHEAD, FetcherPool
from cachefs.units import MIB

logger = logging.getLogger(__name__)

MOST_IMAGES = 64
"""The newest; whoever opens another one asks the store then."""

_MOST_BYTES = 16 * MIB
_AT_ONCE = 4


class EarlyProfiles:
    """What the store knew of images when they were shown; `names` returns them, newest first."""

    def __init__(
        self, rows: ProfileRows, pool: FetcherPool, names: Callable[[], Sequence[str]]
    ) -> None:
        self._rows = rows
        self._pool = pool
        self._names = names
        self._found: dict[str, bytes] = {}
        self._asked: set[str] = set()
        self._wake = trio.Event()

    def take(self, name: str) -> bytes | None:
        """Return the profile of an image once; None if it is not here."""
        return self._found.pop(name, None)

    def shown(self) -> None:
        """Other images are shown."""
        self._wake.set()

    async def run(self) -> None:
        """Ask for profiles until cancelled."""
        while True:
            self._wake = trio.Event()
            names = self._names()[:MOST_IMAGES]
            self._asked.intersection_update(names)
            news = [name for name in names if name not in self._asked]
            self._asked.update(news)
            places = trio.CapacityLimiter(_AT_ONCE)
            async with trio.open_nursery() as nursery:
                for name in news:
                    nursery.start_soon(self._ask, name, places)
            await self._wake.wait()

    async def _ask(self, name: str, places: trio.CapacityLimiter) -> None:
        async with places:
            if self._room_bytes() <= 0:
                return
            if await trio.to_thread.run_sync(self._rows.get, name) is not None:
                return  # this host knows it better
            try:
                job = ProfileJob(self._pool.next_number(), name)
                answer = await self._pool.ask(job, AHEAD)
            except CachefsError as error:  # whoever opens it asks again
                logger.debug("no profile of %s yet: %s", name, error)
                return
        data = answer.data if isinstance(answer, ProfileFound) else None
        if data is not None and len(data) <= self._room_bytes():
            self._found[name] = data

    def _room_bytes(self) -> int:
        return _MOST_BYTES - sum(len(data) for data in self._found.values())
