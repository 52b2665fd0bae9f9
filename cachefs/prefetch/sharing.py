"""Profiles and the store: asked for the profile of an image, and given the runs of this host.

A run that the store does not take is kept, the last one of each image, and offered again after a
pause that grows: nothing waits for it. That it does not is said once, and that it does again, too.

Concurrency: event loop; the store is asked by fetchers, bytes are packed in threads.
"""

from __future__ import annotations

import logging

import trio

from cachefs.errors import CachefsError, ConflictError
from cachefs.policy.prefetch.profile import Profile, from_bytes, to_bytes
from cachefs.prefetch.early import EarlyProfiles
from cachefs.tiers.jobs import ProfileFound, ProfileJob
from cachefs.tiers.pool import FetcherPool

logger = logging.getLogger(__name__)

_PRIORITY = 1
_STORE_WAIT_S = 10.0
"""A start is over before a slower answer would help."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 5.0, 600.0
_MOST_RUNS = 16
"""That wait: some megabytes at most."""


class ProfileSharing:
    """Between the profiles of a mount and the store."""

    def __init__(self, pool: FetcherPool, early: EarlyProfiles | None = None) -> None:
        self._pool = pool
        self.early = early
        self._runs: dict[str, Profile] = {}
        """Not in the store yet, by the names of images."""
        self._pause_s = 0.0
        self._due_s = 0.0

    async def find(self, name: str) -> Profile | None:
        """Return the profile of an image in the store, None if there is none or it is away."""
        data = self.early.take(name) if self.early is not None else None
        try:
            if data is None:
                answer = await self._ask(ProfileJob(self._pool.next_number(), name))
                data = answer.data if isinstance(answer, ProfileFound) else None
            if data is not None:
                return await trio.to_thread.run_sync(from_bytes, data)
        except (CachefsError, trio.TooSlowError) as error:
            logger.info("no profile of %s from the store: %s", name, error)
        return None

    async def give(self, run: Profile | None) -> None:
        """Add a run to what the store has of its image, now or when it takes something again."""
        if run is not None:
            self._runs.pop(run.image, None)
            self._runs[run.image] = run
            if len(self._runs) > _MOST_RUNS:
                del self._runs[next(iter(self._runs))]
        await self.give_due()

    async def give_due(self) -> None:
        """Offer the runs that wait, unless the store has just refused one."""
        while self._runs and trio.current_time() >= self._due_s:
            name, run = next(iter(self._runs.items()))
            data = await trio.to_thread.run_sync(to_bytes, run)
            try:
                await self._ask(ProfileJob(self._pool.next_number(), name, data))
            except ConflictError as error:  # the others were faster: it does take something
                logger.info("a run of %s is not shared: %s", name, error)
            except (CachefsError, trio.TooSlowError) as error:
                self._refused(error)
                return
            self._taken(name, run)

    def _refused(self, error: Exception) -> None:
        if not self._pause_s:
            logger.warning(
                "profiles are not shared while the store takes none: %s. Reads go on; let this "
                "host write to profiles/ there, or set prefetch.share_profiles = false",
                str(error) or f"no answer within {_STORE_WAIT_S:.0f} s",
            )
        self._pause_s = min(max(_FIRST_PAUSE_S, 2 * self._pause_s), _LONGEST_PAUSE_S)
        self._due_s = trio.current_time() + self._pause_s

    def _taken(self, name: str, run: Profile) -> None:
        if self._runs.get(name) is run:
            del self._runs[name]
        if self._pause_s:
            logger.warning("the store takes profiles again")
        self._pause_s = 0.0

    async def _ask(self, job: ProfileJob) -> object:
        with trio.fail_after(_STORE_WAIT_S):
            return await self._pool.ask(job, _PRIORITY)
