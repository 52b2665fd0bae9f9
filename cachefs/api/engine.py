"""The parts of a cache and the thread that their event loop runs in.

Any thread may call `run`; the call is done in the loop, between its other work.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

import lmdb
import trio

from cachefs.api.images import Images
from cachefs.api.values import KeptValues
from cachefs.config import Config
from cachefs.daemon.cache import Cache as Opened
from cachefs.daemon.cache import open_cache
from cachefs.errors import CacheError
from cachefs.index.folder import CacheFolder, open_folder
from cachefs.index.values import Values
from cachefs.metrics import Metrics
from cachefs.reader import Reader
from cachefs.store.s3_settings import S3Settings
from cachefs.store.store import Store
from cachefs.tiers.demotion import Demotion
from cachefs.tiers.disk_watch import DiskWatch
from cachefs.tiers.jobs import Answer, ChunkJob, ChunksDone, Done, Fetched, Job, Outcome
from cachefs.tiers.pool import FetcherPool
from cachefs.tiers.scrub import Scrub
from cachefs.tiers.stack import Stack
from cachefs.tiers.tables import Tables

T = TypeVar("T")

NO_STORE = "values only"
"""Stands for the identity of the store in a cache folder without one."""

_QUEUE_WAIT_S = 10.0


class NoFetchers(FetcherPool):
    """The pool of a cache without store and L2: what is not in L1 is nowhere."""

    async def run(self) -> None:
        """Start nothing."""

    def submit(
        self,
        job: Job,
        priority: int,
        done: Callable[[Answer], None],
        landed: Callable[[Sequence[int]], None] | None = None,
    ) -> None:
        """Answer that there is no such chunk, at the next turn of the event loop."""
        answer: Answer = Done(job.number, None)
        if isinstance(job, ChunkJob):
            missing = Fetched(Outcome.MISSING, message="it is neither in L1 nor anywhere else")
            answer = ChunksDone(job.number, (missing,) * len(job.wanted), 0, 0)
        trio.lowlevel.current_trio_token().run_sync_soon(done, answer)


class Parts:
    """What is open while the event loop runs."""

    def __init__(
        self,
        config: Config,
        folder: CacheFolder,
        store: Store | None,
        nursery: trio.Nursery,
        most_keys: int,
    ) -> None:
        self.config = config
        self.opened: Opened = open_cache(folder, config, Metrics())
        self.metrics = self.opened.l1.metrics
        fetch = config.fetch
        is_on_s3 = store is not None and store.url.startswith("s3://")
        kind = FetcherPool if store or config.l2.url else NoFetchers
        self.pool = kind(
            store.url if store else "",
            store.identity if store else NO_STORE,
            fetch.fetcher_count(),
            folder.lock_fd,
            fetch.job_timeout_s,
            self.metrics,
            S3Settings(**config.fetchers_s3().model_dump()) if is_on_s3 else None,
            config.l2,
        )
        if config.l2.url and config.l2.demote:
            Demotion(self.opened.l1, self.pool, self.metrics)
        stack = Stack(self.opened.l1, self.pool, nursery, self.metrics)
        verify_reads = config.l1.verify == "read"
        deadline_s = fetch.read_deadline_s
        reader = Reader(self.opened.l1, stack, self.metrics, deadline_s, verify_reads=verify_reads)
        self.values = KeptValues(
            self.opened.l1,
            Values(self.opened.database, most_keys),
            reader,
            stack,
            self.pool,
            has_l2=bool(config.l2.url),
        )
        self.tables = Tables((folder.manifests_path,), self.pool)
        self.images = Images(store, self.tables, reader, deadline_s) if store else None
        self.disk_watch = DiskWatch(self.opened.l1, config.lane.disk_patience_s)
        self.scrub = Scrub(self.opened.l1, config.l1.scrub_bytes_per_s, self.metrics)

    async def flush(self) -> None:
        """Bring all to the disk, and wait for L2's queue.

        Raises:
            CacheError: the disk takes nothing.
        """
        try:
            await self.values.commit()
            if not await self.opened.keeper.commit():
                raise CacheError("the index of the cache cannot be written")
            await trio.to_thread.run_sync(self.opened.l1.sync)
        except (OSError, lmdb.Error) as error:
            raise CacheError(f"the cache cannot be brought to the disk: {error}") from error
        with trio.move_on_after(_QUEUE_WAIT_S):
            while self.metrics.l2_queued_bytes or self.pool.queued:  # noqa: ASYNC110
                await trio.sleep(0.01)

    async def close(self) -> None:
        """Close what was opened; L1 is clean on the disk then."""
        self.tables.close()
        await self.values.commit()
        await self.opened.close()


class Engine:
    """Runs the parts in a thread of its own, from `start` to `stop`."""

    def __init__(self, config: Config, store: Store | None, most_keys: int) -> None:
        self._config = config
        self._store = store
        self._most_keys = most_keys
        self._started: Future[None] = Future()
        self._thread = threading.Thread(target=self._serve, name="cachefs", daemon=True)
        self._token: trio.lowlevel.TrioToken | None = None
        self._stop: trio.Event | None = None
        self._parts: Parts | None = None

    def start(self) -> None:
        """Open all parts.

        Raises:
            CachefsError: they cannot be opened.
        """
        self._thread.start()
        self._started.result()

    def run(self, call: Callable[[Parts], Awaitable[T]]) -> T:
        """Return what a call returns that is made in the event loop.

        Raises:
            CacheError: the cache is closed.
        """

        async def make() -> T:
            if self._parts is None:
                raise CacheError("the cache is closed")
            return await call(self._parts)

        try:
            return trio.from_thread.run(make, trio_token=self._token)
        except (trio.RunFinishedError, trio.Cancelled) as error:
            raise CacheError("the cache is closed") from error

    def stop(self) -> None:
        """Close all parts, and wait for that; does nothing the second time."""
        if self._token is not None and self._stop is not None:
            try:
                trio.from_thread.run_sync(self._stop.set, trio_token=self._token)
            except trio.RunFinishedError:
                return
            self._thread.join()

    def _serve(self) -> None:
        try:
            trio.run(self._main)
        except BaseException as error:
            if self._started.done():
                raise
            self._started.set_exception(error)

    async def _main(self) -> None:
        identity = self._store.identity if self._store else NO_STORE
        path = Path(self._config.l1.dir)
        folder = await trio.to_thread.run_sync(open_folder, path, identity)
        try:
            await self._serve_parts(folder)
        finally:
            folder.close()

    async def _serve_parts(self, folder: CacheFolder) -> None:
        self._token, self._stop = trio.lowlevel.current_trio_token(), trio.Event()
        async with trio.open_nursery() as nursery:
            parts = Parts(self._config, folder, self._store, nursery, self._most_keys)
            try:
                for task in (
                    parts.opened.keeper.run,
                    parts.pool.run,
                    parts.scrub.run,
                    parts.disk_watch.run,
                    parts.values.run,
                ):
                    nursery.start_soon(task)
                self._parts = parts
                self._started.set_result(None)
                await self._stop.wait()
            finally:
                self._parts = None
                nursery.cancel_scope.cancel()
                with trio.CancelScope(shield=True):
                    await parts.close()
