"""The learning of the daemon: models are trained (training.py), saved, loaded, shown.

A model file is written beside the old one and takes its place in one step, so that a kill at any
moment leaves the old or the new. A file that is damaged or of another version is passed over with a
message, and learning starts anew. Every file may be deleted at any time. A cache folder without a
model starts with the one that hosts share (sharing.py), unless its own was reset.

Concurrency: policies are touched on the event loop only; training is in a process, files are in
threads.
"""

from __future__ import annotations

import logging
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import trio

from cachefs.daemon.cache import Cache
from cachefs.daemon.sharing import Sharing
from cachefs.daemon.training import train
from cachefs.errors import CacheError, FormatError, NotFoundError, UsageError
from cachefs.index.segments import slot_bytes_of
from cachefs.policy.evict.ml.learned import Learned, Training
from cachefs.policy.evict.ml.models import Logistic
from cachefs.policy.evict.ml.saved import IMPORTED, MOST_BYTES, Saved, restored, saved

logger = logging.getLogger(__name__)

_LOOK_INTERVAL_S = 1.0
_SAVE_INTERVAL_S = 60.0


class _Trained(NamedTuple):
    """When the last training ended, in Unix time, and how long it took; 0: there was none."""

    trained_at: float = 0.0
    training_s: float = 0.0


class Learning:
    """What learns over a cache; idle while the policy is one that does not."""

    def __init__(self, cache: Cache, sharing: Sharing | None = None) -> None:
        self._cache = cache
        self._sharing = sharing
        self._saved_s = 0.0
        self._trained: dict[int, _Trained] = {}
        """The last training of each class of slots, by its number."""
        self._loaded: set[int] = set()
        """Policies, by id, that were offered the saved model already."""

    async def run(self) -> None:
        """Train, save and share until cancelled."""
        async with trio.open_nursery() as nursery:
            if self._sharing is not None:
                nursery.start_soon(self._sharing.run, self._learners)
            nursery.start_soon(self._keep)
            nursery.start_soon(self._learn)

    async def _keep(self) -> None:
        """Load models, and save them now and then."""
        while True:
            await trio.sleep(_LOOK_INTERVAL_S)
            for number, policy in self._learners().items():
                if id(policy) not in self._loaded:
                    await self._load(number, policy)
            if trio.current_time() - self._saved_s > _SAVE_INTERVAL_S:
                await self.save()

    async def _learn(self) -> None:
        """Train one model at a time, however long it takes."""
        while True:
            await trio.sleep(_LOOK_INTERVAL_S)
            for number, policy in self._learners().items():
                work = policy.training() if id(policy) in self._loaded else None
                if work is not None:
                    await self._train(number, policy, work)

    async def _train(self, number: int, policy: Learned, work: Training) -> None:
        began_s = time.time()
        try:
            model = await train(work)
            took_s = time.time() - began_s
            self._trained[number] = _Trained(began_s + took_s, took_s)
            self._cache.l1.metrics.trainings += 1
            self._cache.l1.metrics.training_us += max(0, round(took_s * 1e6))
        except ImportError as error:  # also a shared library that it needs
            model = None
            if policy.kind is not Logistic:
                logger.warning("without LightGBM eviction learns by logistic regression: %s", error)
                policy.learn_by(Logistic)
                return
        except (CacheError, ValueError) as error:  # the old model goes on
            model = None
            logger.warning("cannot train a model: %s", error)
        policy.adopt(model)
        if model is not None:
            await self.save()

    async def save(self) -> None:
        """Write all models down."""
        self._saved_s = trio.current_time()
        for number, policy in self._learners().items():
            what = policy.saved()
            if what is not None:
                path, mark = self._path(number), self._mark(number)
                await trio.to_thread.run_sync(_write_quietly, path, what, mark)

    async def command(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer `cachefs model`.

        Raises:
            CachefsError: there is nothing to do that with, or the file is none.
        """
        learners = self._learners()
        if not learners:
            raise UsageError(
                f"the policy is '{self._cache.policy}', which learns nothing: see 'cachefs policy'"
            )
        action = request.get("action")
        path = Path(str(request.get("path", "")))
        if action == "export":
            await self._export(learners, path)
        elif action == "import":
            what = await trio.to_thread.run_sync(read_model, path)
            for policy in learners.values():
                policy.take_over(replace(what, origin=IMPORTED))
            await self.save()
        elif action == "reset":
            for number, policy in learners.items():
                await self._reset(number, policy)
        elif action != "show":
            raise UsageError(f"cannot '{action}' a model")
        return {
            "is_shared": self._sharing is not None,
            "classes": {
                slot_bytes_of(n): p.what_it_does() | self._trained.get(n, _Trained())._asdict()
                for n, p in learners.items()
            },
        }

    async def _reset(self, number: int, policy: Learned) -> None:
        """Forget a model, and do not let the next daemon bring back the one that hosts share."""
        if self._sharing is not None:
            self._sharing.leave(number)
        policy.reset()
        await trio.to_thread.run_sync(_forget, self._path(number), self._mark(number))

    async def _export(self, learners: dict[int, Learned], path: Path) -> None:
        known = [what for policy in learners.values() if (what := policy.saved()) is not None]
        if not known:
            raise UsageError("nothing is learned yet: there is no model to export")
        best = max(known, key=lambda what: what.trainings)
        await trio.to_thread.run_sync(write_model, path, best)

    async def _load(self, number: int, policy: Learned) -> None:
        self._loaded.add(id(policy))
        path = self._path(number)
        await trio.to_thread.run_sync(_remove, _temporary(path))  # of a daemon that was killed
        try:
            what = await trio.to_thread.run_sync(read_model, path)
        except NotFoundError:
            await self._want(number, policy)
        except FormatError as error:
            logger.warning("%s: learning starts anew", error)
            await self._want(number, policy)
        else:
            policy.take_over(what)

    async def _want(self, number: int, policy: Learned) -> None:
        """Let a policy without a model have the one that hosts share."""
        is_reset = await trio.to_thread.run_sync(self._mark(number).exists)
        if self._sharing is not None and not is_reset:
            self._sharing.want(number, policy)

    def _learners(self) -> dict[int, Learned]:
        classes = self._cache.l1.classes.items()
        return {n: held.policy for n, held in classes if isinstance(held.policy, Learned)}

    def _path(self, number: int) -> Path:
        return self._cache.folder.path / f"model-{slot_bytes_of(number)}"

    def _mark(self, number: int) -> Path:
        """Return the file that says: reset, and nothing learned since."""
        return self._cache.folder.path / f"model-{slot_bytes_of(number)}.reset"


def write_model(path: Path, what: Saved) -> None:
    """Write a model down, so that a kill leaves the old file or the new one. Blocks.

    Raises:
        CacheError: the disk does not let us.
    """
    temporary = _temporary(path)
    try:
        with temporary.open("wb") as file:
            file.write(saved(what))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise CacheError(f"cannot write the model {path}: {error.strerror}") from error


def read_model(path: Path) -> Saved:
    """Return a model from a file. Blocks.

    Raises:
        NotFoundError: there is no such file.
        FormatError: it is damaged, of another version, or cannot be read or used here.
    """
    try:
        with path.open("rb") as file:
            return restored(file.read(MOST_BYTES + 1))
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no model {path}") from error
    except (OSError, ValueError, LookupError, TypeError, ImportError) as error:
        raise FormatError(f"cannot use the model {path}: {error}") from error


def _temporary(path: Path) -> Path:
    return path.with_name(f"{path.name}.tmp")


def _write_quietly(path: Path, what: Saved, mark: Path) -> None:
    try:
        write_model(path, what)
        _remove(mark)
    except CacheError as error:
        logger.warning("%s", error)


def _forget(path: Path, mark: Path) -> None:
    try:
        mark.touch()
    except OSError as error:
        logger.warning("cannot write %s, the shared model may come back: %s", mark, error)
    _remove(path)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("cannot remove %s: %s", path, error)
