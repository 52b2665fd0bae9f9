"""The opened cache: folder, index, L1 and its keeper, from start to clean end."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import lmdb
import numpy as np
import numpy.typing as npt
import trio

from cachefs.config import Config
from cachefs.errors import CacheError, UsageError
from cachefs.index.database import Database, open_database
from cachefs.index.folder import CacheFolder
from cachefs.index.segments import slot_bytes_of
from cachefs.metrics import Metrics
from cachefs.policy.evict.names import POLICIES, make_policy
from cachefs.policy.evict.order import Ticks
from cachefs.tiers.board import SlotBoard
from cachefs.tiers.keeper import Keeper
from cachefs.tiers.l1 import L1, MakePolicy

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Cache:
    """What a cache folder holds, opened."""

    folder: CacheFolder
    database: Database
    l1: L1
    keeper: Keeper
    ticks: Ticks
    policy: str
    """The eviction policy's name."""

    def change_policy(self, name: str) -> None:
        """Evict by another policy from now on.

        Raises:
            UsageError: there is none of that name.
        """
        if name not in POLICIES:
            raise UsageError(f"no policy '{name}': there are {', '.join(POLICIES)}")
        if name != self.policy:
            self.l1.change_policy(_maker(name, self.ticks))
            self.policy = name

    async def save_recency(self) -> None:
        """Write down how recently each slot was used; losing that costs only good order."""
        self.l1.tell_uses()
        # The snapshots are taken here: a policy knows one thread only.
        snapshots = {n: slots.policy.snapshot() for n, slots in self.l1.classes.items()}
        for number, snapshot in snapshots.items():
            path = _recency_path(self.folder, number)
            await trio.to_thread.run_sync(_write_recency, path, snapshot)

    async def close(self) -> None:
        """Commit everything, bring it to the disk, and say that this was a clean stop."""
        is_committed = await self.keeper.commit()
        await self.save_recency()
        if is_committed:
            await trio.to_thread.run_sync(self._close_epoch)
        self.l1.close()
        self.database.close()

    def _close_epoch(self) -> None:
        """A stop is clean when slots and index are on the disk, not only in the page cache."""
        try:
            self.l1.sync()
            self.l1.epoch.close()
        except (OSError, lmdb.Error) as error:
            logger.warning("this stop is not clean, L1 will be verified: %s", error)


def open_cache(
    folder: CacheFolder,
    config: Config,
    metrics: Metrics,
    board: SlotBoard | None = None,
    quota_bytes: int | None = None,
) -> Cache:
    """Open what is in a locked cache folder. With a board the lane is told what is there.

    `quota_bytes` may be another one than the configuration's.

    Raises:
        CacheError: the disk does not let us.
    """
    database, is_new = open_database(folder.index_path, folder.segments_path)
    ticks, name = Ticks(), config.eviction.policy
    if quota_bytes is None:
        quota_bytes = config.l1.quota_bytes
    try:
        l1 = L1(folder, database, quota_bytes, _maker(name, ticks), metrics, board)
    except (OSError, lmdb.Error) as error:
        database.close()
        raise CacheError(f"cannot open the cache {folder.path}: {error}") from error
    if not is_new:
        _restore_recency(folder, l1)
    if l1.epoch.unclean_start:
        logger.warning("the last stop was not clean: chunks in L1 are verified at first use")
    return Cache(folder, database, l1, Keeper(l1, config.l1.free_floor_bytes), ticks, name)


def _maker(name: str, ticks: Ticks) -> MakePolicy:
    return lambda most_slots: make_policy(name, ticks, most_slots=most_slots)


def _restore_recency(folder: CacheFolder, l1: L1) -> None:
    for number, slots in l1.classes.items():
        try:
            with _recency_path(folder, number).open("rb") as file:
                slots.policy.restore(np.lib.format.read_array(file))
        except (OSError, ValueError) as error:
            logger.info("starting without the order of use of class %d: %s", number, error)


def _write_recency(path: Path, snapshot: npt.NDArray[np.uint32]) -> None:
    temporary = path.with_suffix(".tmp.npy")
    try:
        np.save(temporary, snapshot)
        temporary.rename(path)
    except OSError as error:
        logger.warning("cannot write %s: %s", path, error)


def _recency_path(folder: CacheFolder, number: int) -> Path:
    return folder.path / f"recency-{slot_bytes_of(number)}.npy"
