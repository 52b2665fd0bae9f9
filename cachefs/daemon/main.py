"""The daemon process: opens everything in order, runs it, and closes it in the other order.

Started by the supervisor with a socket for FUSE requests and one for messages. Its tasks are listed
in docs/concurrency.md.
"""

from __future__ import annotations

import argparse
import gc
import logging
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy.ma  # noqa: F401  np.unique loads it at its first use, which takes 25 ms
import trio
from prometheus_client import CollectorRegistry, start_http_server

from cachefs.config import Config
from cachefs.daemon.choice import keep_choice, restore_choice
from cachefs.daemon.control import serve_control
from cachefs.daemon.learning import Learning
from cachefs.daemon.listing import ListingTask
from cachefs.daemon.opening import Opened, fetchers_s3, open_for, until_well
from cachefs.daemon.prefetching import (
    ArmMetrics,
    ahead_places,
    describe_prefetcher,
    make_prefetcher,
    make_profiles,
    pattern_of,
)
from cachefs.daemon.recording import Recording
from cachefs.daemon.sharing import Sharing
from cachefs.daemon.status import describe, xattrs
from cachefs.daemon.supervised import Start, Supervisor
from cachefs.daemon.warming import Warmings
from cachefs.errors import CacheError, CachefsError, UsageError
from cachefs.fuse.opened import OpenImages
from cachefs.fuse.operations import Operations
from cachefs.fuse.reads import Reads
from cachefs.fuse.replies import Replies
from cachefs.fuse.session import close_session, end_session, open_session, run_session
from cachefs.index.manifest_table import ManifestTable
from cachefs.metrics import Metrics
from cachefs.policy.admit import ScanFilter
from cachefs.policy.evict.names import POLICIES
from cachefs.prefetch.prefetcher import Prefetcher
from cachefs.prefetch.profiles import Profiles
from cachefs.reader import Reader
from cachefs.tiers.accesses import Accesses
from cachefs.tiers.board import Board
from cachefs.tiers.demotion import Demotion
from cachefs.tiers.disk_watch import DiskWatch
from cachefs.tiers.hints import Hints
from cachefs.tiers.pool import FetcherPool
from cachefs.tiers.scrub import Scrub
from cachefs.tiers.stack import Stack
from cachefs.tiers.tables import Tables
from cachefs.vfs import FileNode, Vfs

logger = logging.getLogger(__name__)

_RECENCY_INTERVAL_S = 300.0


class Daemon:
    """One daemon, put together."""

    def __init__(
        self,
        config: Config,
        start: Start,
        opened: Opened,
        board: Board,
    ) -> None:
        self.config = config
        self.opened = opened
        cache = opened.cache
        self.board = board
        self.replies = Replies()
        self._run_dir = start.run_dir
        self.cache = cache
        self.metrics = cache.l1.metrics
        fetch = config.fetch
        self.pool = FetcherPool(
            config.store.url,
            opened.identity,
            fetch.fetcher_count(),
            opened.lock_fd,
            fetch.job_timeout_s,
            self.metrics,
            fetchers_s3(config),
            config.l2,
            ahead_places(config),
        )
        if config.l2.url and config.l2.demote:
            Demotion(cache.l1, self.pool, self.metrics)
        self.tables = Tables(opened.manifests, self.pool)
        self.vfs = Vfs(config.fetch.on_outage)
        shares_models = config.eviction.share_models
        self.listing = ListingTask(self.vfs, opened.names, self.pool, self.metrics)
        self.listing.on_shown = self._shown
        self.learning = Learning(cache, Sharing(self.pool) if shares_models else None)
        self.scrub = Scrub(cache.l1, config.l1.scrub_bytes_per_s, self.metrics)
        self.disk_watch = DiskWatch(cache.l1, config.lane.disk_patience_s)
        self.hints = Hints(cache.l1)
        self.accesses = Accesses(board, cache.l1, self.metrics)
        self.prefetcher: Prefetcher | None = None
        self.profiles: Profiles | None = None
        self.recording = Recording(self.accesses, self.vfs)
        self.warmings: Warmings | None = None

    def _shown(self, chunk_sizes: set[int]) -> None:
        self.cache.l1.expect(chunk_sizes)
        if self.profiles is not None:
            self.profiles.shown()

    def images(self, nursery: trio.Nursery) -> OpenImages:
        """Return the open images over all parts; their background work runs in `nursery`."""
        scans = ScanFilter(self.config.l2.scan_bytes if self.config.l2.url else 0)
        stack = Stack(self.cache.l1, self.pool, nursery, self.metrics, scans)
        reader = Reader(
            self.cache.l1,
            stack,
            self.metrics,
            self.config.fetch.read_deadline_s,
            verify_reads=self.config.l1.verify == "read",
            buffer=self.replies.buffer,
            disk_patience_s=self.config.lane.disk_patience_s,
        )
        images = OpenImages(self.vfs, reader, self._table, self._renewed_table, self.board)
        self.prefetcher = make_prefetcher(
            self.config, self.cache.l1, stack, self.pool, images.table_of, self.accesses
        )
        if self.prefetcher is not None:
            images.on_closed = self.prefetcher.closed
            self.profiles = make_profiles(
                self.config, self.prefetcher, self.cache.database, self.pool, self.vfs
            )
        self.warmings = Warmings(nursery, self.vfs, self.prefetcher, self.profiles, self._table)
        return images

    def operations(self, images: OpenImages) -> Operations:
        """Return the FUSE operations."""
        return Operations(
            self.vfs,
            images,
            xattrs(self.cache.l1, self.tables) | {"user.cachefs.pattern": self._pattern},
            self.config.store.refresh_s,
            self._opened,
        )

    def _opened(self, inode: int, table: ManifestTable) -> None:
        self.hints.opened(inode, table)
        if self.prefetcher is not None:
            self.prefetcher.opened(inode, table)

    def commands(self) -> dict[str, Any]:
        """Return what the control socket answers."""
        return {
            "status": self._status,
            "scrub": self._scrub,
            "refresh": self._refresh,
            "policy": self._policy,
            "model": self.learning.command,
            "profile": self._profile,
            "trace": self.recording.command,
            "warm": self._warm,
        }

    async def save_recency(self) -> None:
        """Write the order of use down now and then."""
        while True:
            await trio.sleep(_RECENCY_INTERVAL_S)
            await self.cache.save_recency()

    async def _table(self, manifest_id: str) -> ManifestTable:
        opened = self.tables.opened(manifest_id)
        if opened is not None:
            return opened
        return await self.tables.get(manifest_id, self._deadline_s())

    async def _renewed_table(self, manifest_id: str) -> ManifestTable:
        self.tables.discard(manifest_id)
        return await self.tables.get(manifest_id, self._deadline_s())

    def _deadline_s(self) -> float:
        return trio.current_time() + self.config.fetch.read_deadline_s

    async def _status(self, _: dict[str, Any]) -> dict[str, Any]:
        told = describe(
            self.config.store.url, self.vfs, self.cache, self.pool, self.listing, self.metrics
        )
        return told | {"prefetch": describe_prefetcher(self.prefetcher, self.vfs)}

    async def _warm(self, request: dict[str, Any]) -> dict[str, Any]:
        if self.warmings is None:
            raise CacheError("this mount has not come up yet")
        return await self.warmings.command(request)

    async def _pattern(self, node: FileNode) -> bytes:
        return pattern_of(self.prefetcher, node.inode).encode()

    async def _scrub(self, _: dict[str, Any]) -> dict[str, Any]:
        read, bad = await self.scrub.scrub_once()
        return {"verified_chunks": read, "dropped_chunks": bad}

    async def _policy(self, request: dict[str, Any]) -> dict[str, Any]:
        """Tell the eviction policy; change it if the request names one."""
        if "name" in request:
            self.cache.change_policy(str(request["name"]))
            await trio.to_thread.run_sync(keep_choice, self._run_dir, self.cache.policy)
        return {"policy": self.cache.policy, "policies": list(POLICIES)}

    async def _profile(self, request: dict[str, Any]) -> dict[str, Any]:
        if self.profiles is None:
            raise UsageError("nothing is fetched ahead, so nothing is learned: prefetch.enabled")
        return await self.profiles.command(request)

    async def _refresh(self, _: dict[str, Any]) -> dict[str, Any]:
        await self.listing.refresh()
        return {"images": len(self.vfs.tree.files()), "error": self.listing.last_error}


async def run_daemon(config: Config, start: Start, supervisor: Supervisor) -> None:
    """Run a daemon until the supervisor wants it to stop.

    Raises:
        CachefsError: it cannot start.
    """
    metrics = Metrics()
    # With `verify = "read"` every read has to come here.
    serves_hits = config.lane.hits and config.l1.verify != "read"
    board = Board(start.board_fd, supervisor.offer_segment, serves_hits=serves_hits)
    opened = await open_for(config, start, metrics, board)
    restore_choice(start.run_dir, opened.cache, fresh=start.fresh)
    daemon = Daemon(config, start, opened, board)
    try:
        await _run_tasks(daemon, start, supervisor)
    finally:
        with trio.CancelScope(shield=True):
            if daemon.profiles is not None:
                await daemon.profiles.save()  # which looks into the tables
            daemon.tables.close()
            await daemon.learning.save()
            await opened.cache.close()
            opened.close()


async def _run_tasks(daemon: Daemon, start: Start, supervisor: Supervisor) -> None:
    config = daemon.config
    async with trio.open_nursery() as nursery:
        images = daemon.images(nursery)
        reads = Reads(daemon.replies, images.read_hit, images.read)
        open_session(daemon.operations(images), start.fuse_fd)
        try:
            nursery.start_soon(daemon.pool.run)
            await daemon.listing.restore(fresh=start.fresh)
            if start.fresh:
                await daemon.listing.refresh()
                daemon.tables.forget_all_but(daemon.listing.manifests())
            nursery.start_soon(daemon.cache.keeper.run)
            nursery.start_soon(daemon.listing.run, config.store.refresh_s)
            nursery.start_soon(daemon.scrub.run)
            if daemon.opened.is_spare:
                nursery.start_soon(_end_when_the_disk_is_well, daemon, nursery.cancel_scope)
            else:
                nursery.start_soon(daemon.disk_watch.run)
            nursery.start_soon(daemon.hints.run)
            nursery.start_soon(daemon.accesses.run)
            nursery.start_soon(daemon.recording.run)
            if daemon.prefetcher is not None:
                nursery.start_soon(daemon.prefetcher.run)
            if daemon.profiles is not None:
                nursery.start_soon(daemon.profiles.run)
            nursery.start_soon(daemon.learning.run)
            nursery.start_soon(daemon.save_recency)
            nursery.start_soon(serve_control, start.run_dir / "daemon.sock", daemon.commands())
            if config.metrics.listen:
                _serve_metrics(config.metrics.listen, daemon)
            nursery.start_soon(_serve_fuse, nursery.cancel_scope)
            _calm_collector()
            supervisor.ready()

            def take_reads(fd: int, devices: list[int]) -> None:
                daemon.replies.devices = devices
                nursery.start_soon(reads.run, socket.socket(fileno=fd))

            await _wait_for_stop(supervisor, take_reads)
            end_session()
        finally:
            nursery.cancel_scope.cancel()
    close_session()


def _calm_collector() -> None:
    """Leave what the start has made out of every later collection, and collect seldom.

    A collection walks everything that lives, on the event loop, under a hit that waits.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


async def _wait_for_stop(
    supervisor: Supervisor, take_reads: Callable[[int, list[int]], None]
) -> None:
    """Return when the supervisor or SIGTERM (also sent when the supervisor dies) says stop."""
    async with trio.open_nursery() as nursery:

        async def wait_for_signal() -> None:
            with trio.open_signal_receiver(signal.SIGTERM) as signals:
                async for _ in signals:
                    nursery.cancel_scope.cancel()

        nursery.start_soon(wait_for_signal)
        await supervisor.wait_for_stop(take_reads)
        nursery.cancel_scope.cancel()


async def _end_when_the_disk_is_well(daemon: Daemon, scope: trio.CancelScope) -> None:
    await until_well(Path(daemon.config.l1.dir), daemon.opened)
    logger.warning("the disk of L1 is back: ending, for a daemon that has it")
    scope.cancel()


async def _serve_fuse(scope: trio.CancelScope) -> None:
    """Run the session; its end, the lane's or our own, is the daemon's."""
    try:
        await run_session()
    except* OSError as group:
        logger.warning("the lane has gone: %s", group.exceptions[0])
    scope.cancel()


def _serve_metrics(listen: str, daemon: Daemon) -> None:
    host, _, port = listen.rpartition(":")
    registry = CollectorRegistry()
    registry.register(daemon.metrics)
    if daemon.prefetcher is not None:
        registry.register(ArmMetrics(daemon.prefetcher))
    try:
        start_http_server(int(port), host or "127.0.0.1", registry)
    except (OSError, ValueError) as error:
        raise CacheError(f"cannot serve metrics on '{listen}': {error}") from error


def main(arguments: list[str] | None = None) -> int:
    """Run the daemon; the supervisor's command line, not a person's."""
    parser = argparse.ArgumentParser(prog="cachefs.daemon")
    parser.add_argument("--config", required=True, help="the configuration, as JSON")
    parser.add_argument("--fuse-fd", type=int, required=True)
    parser.add_argument("--supervisor-fd", type=int, required=True)
    parser.add_argument("--board-fd", type=int, required=True)
    parser.add_argument("--start", choices=("fresh", "restart"), required=True)
    parser.add_argument("--wary", action="store_true", help="look at the cache's disk first")
    parser.add_argument("--run-dir", type=Path, required=True)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s daemon[%(process)d]: %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    config = Config.model_validate_json(options.config)
    supervisor = Supervisor(options.supervisor_fd)
    fresh = options.start == "fresh"
    start = Start(options.fuse_fd, options.board_fd, options.run_dir, fresh, options.wary)
    try:
        trio.run(run_daemon, config, start, supervisor)
    except CachefsError as error:
        supervisor.failed(str(error), error.exit_code)
        logger.error("%s", error)  # noqa: TRY400 - the message says it all
        return error.exit_code
    except BaseExceptionGroup as group:
        return _report(group, supervisor)
    return 0


def _report(group: BaseExceptionGroup[BaseException], supervisor: Supervisor) -> int:
    """Tell the first error of a group of tasks that failed together."""
    first: BaseException = group
    with suppress(IndexError):
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
    logger.error("the daemon failed", exc_info=group)
    exit_code = first.exit_code if isinstance(first, CachefsError) else 1
    supervisor.failed(str(first), exit_code)
    return exit_code
