"""Models that hosts share through the store: taken where there is none, given where one is proved.

Nothing waits for any of it, and what fails is as if nobody shared anything. What is wrong is said
once, not each time; a store that takes no model is offered it again after a pause that grows.

Concurrency: event loop; the store is asked by fetchers, models are read in threads.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import trio

from cachefs.errors import CachefsError, ConflictError
from cachefs.index.segments import slot_bytes_of
from cachefs.policy.evict.ml.learned import Learned
from cachefs.policy.evict.ml.saved import STORE, Saved, restored, saved
from cachefs.tiers.jobs import ModelFound, ModelJob
from cachefs.tiers.pool import FetcherPool

logger = logging.getLogger(__name__)

_LOOK_INTERVAL_S = 1.0
_PRIORITY = 2
"""After what readers wait for, names and profiles."""
_STORE_WAIT_S = 30.0
_MOST_TRIES = 6
_FIRST_PAUSE_S = 5.0
"""Doubles: the last try to take one is after two and a half minutes. By then most hosts learn by
themselves."""
_GIVE_INTERVAL_S = 600.0
"""A host that starts is helped as well by a model that is ten minutes old, and the store has six
writes an hour of each host and chunk size at most."""
_MOST_SAID = 32


@dataclass(slots=True)
class _Asking:
    policy: Learned
    tries: int = 0
    due_s: float = 0.0


class Sharing:
    """Between the policies that learn and the store."""

    def __init__(self, pool: FetcherPool) -> None:
        self._pool = pool
        self._asking: dict[int, _Asking] = {}
        """Classes of slots whose policies have no model, by their numbers."""
        self._given: dict[int, int] = {}
        """The trainings of the model that the store has seen of each class."""
        self._give_s: dict[int, float] = {}
        self._pause_s: dict[int, float] = {}
        """Of those whose last model the store did not take: how long they wait until they try."""
        self._said: set[str] = set()

    def want(self, number: int, policy: Learned) -> None:
        """A policy starts without a model: ask for one."""
        self._asking[number] = _Asking(policy)

    def leave(self, number: int) -> None:
        """Take nothing for this class any more, and begin to count its trainings anew."""
        self._asking.pop(number, None)
        self._given.pop(number, None)

    async def run(self, learners: Callable[[], dict[int, Learned]]) -> None:
        """Take and give until cancelled."""
        while True:
            await trio.sleep(_LOOK_INTERVAL_S)
            for number, policy in learners().items():
                asking = self._asking.get(number)
                if asking is not None and asking.due_s <= trio.current_time():
                    await self._take(number, asking)
                elif self._is_due(number, policy):
                    await self._give(number, policy)

    # ---- taking ----

    async def _take(self, number: int, asking: _Asking) -> None:
        if asking.policy.model is None:
            try:
                what = await self._from_store(number)
            except (CachefsError, trio.TooSlowError) as error:
                self._try_again(number, asking, error)
                return
            # By now it may have learned, or somebody has reset it or imported a model.
            is_wanted = self._asking.get(number) is asking and asking.policy.model is None
            if what is not None and is_wanted:
                asking.policy.take_over(what)
                logger.info("chunks of %d: the model of the store is used", slot_bytes_of(number))
        if self._asking.get(number) is asking:
            del self._asking[number]

    def _try_again(self, number: int, asking: _Asking, error: Exception) -> None:
        asking.tries += 1
        asking.due_s = trio.current_time() + _FIRST_PAUSE_S * 2 ** (asking.tries - 1)
        if asking.tries >= _MOST_TRIES and self._asking.get(number) is asking:
            del self._asking[number]
        logger.info("no model from the store: %s", error)

    async def _from_store(self, number: int) -> Saved | None:
        data = await self._ask(number)
        if data is None:
            return None
        try:
            return await trio.to_thread.run_sync(_of_store, data)
        except (ValueError, ImportError, OSError) as error:
            self._say(f"the model of the store cannot be used here: {error}")
            return None

    # ---- giving ----

    def _is_due(self, number: int, policy: Learned) -> bool:
        return (
            policy.model is not None
            and policy.origin != STORE
            and policy.trainings > self._given.get(number, 0)
            and trio.current_time() >= self._give_s.get(number, 0.0)
            and policy.guard.has_proved_model()
        )

    async def _give(self, number: int, policy: Learned) -> None:
        """Share a model that is no worse here than the policies of the literature."""
        self._give_s[number] = trio.current_time() + _GIVE_INTERVAL_S
        what = policy.saved()
        assert what is not None
        try:
            await self._ask(number, saved(what))
        except ConflictError as error:  # the others were faster: it does take something
            logger.info("a model is not shared: %s", error)
        except (CachefsError, trio.TooSlowError) as error:
            self._refused(number, error)
        else:
            self._given[number] = what.trainings
            if self._pause_s.pop(number, None) is not None:
                logger.warning(
                    "the store takes models for chunks of %d again", slot_bytes_of(number)
                )

    def _refused(self, number: int, error: Exception) -> None:
        if not self._pause_s:
            logger.warning(
                "models are not shared while the store takes none: %s. Reads go on; let this host "
                "write to models/ there, or set eviction.share_models = false",
                str(error) or f"no answer within {_STORE_WAIT_S:.0f} s",
            )
        pause_s = max(_FIRST_PAUSE_S, 2 * self._pause_s.get(number, 0.0))
        self._pause_s[number] = min(pause_s, _GIVE_INTERVAL_S)
        self._give_s[number] = trio.current_time() + self._pause_s[number]

    async def _ask(self, number: int, model: bytes = b"") -> bytes | None:
        """Ask the store, and tell of what is wrong there."""
        job = ModelJob(self._pool.next_number(), slot_bytes_of(number), model)
        with trio.fail_after(_STORE_WAIT_S):
            answer = await self._pool.ask(job, _PRIORITY)
        assert isinstance(answer, ModelFound)
        if answer.problem:
            self._say(answer.problem)
        return answer.data

    def _say(self, what: str) -> None:
        """Warn of something once."""
        if what not in self._said and len(self._said) < _MOST_SAID:
            self._said.add(what)
            logger.warning("%s", what)


def _of_store(data: bytes) -> Saved:
    """Return a shared model. What it says of itself beyond that is its last host's."""
    what = restored(data)
    return Saved(what.model, what.boundary, what.ruler, what.trainings, STORE)
