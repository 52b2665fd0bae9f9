"""The listing: follows the images of the store, so that the mount shows what is there.

A listing is written down (names.py) before it is shown, so that a daemon that starts again knows
every inode that the kernel may know.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from cachefs.errors import CacheError, CachefsError
from cachefs.index.names import KnownImage, Names
from cachefs.metrics import Metrics
from cachefs.tiers.jobs import Done, ListJob
from cachefs.tiers.pool import FetcherPool
from cachefs.vfs import Tree, Vfs

logger = logging.getLogger(__name__)

_LIST_PRIORITY = 1


class ListingTask:
    """Keeps a Vfs up to date with a store."""

    def __init__(self, vfs: Vfs, names: Names, pool: FetcherPool, metrics: Metrics) -> None:
        self._vfs = vfs
        self._names = names
        self._pool = pool
        self._metrics = metrics
        self._known: dict[str, KnownImage] = {}
        self._complaints: dict[str, str] = {}
        self._refreshing = trio.Lock()
        self.last_error: str | None = None
        """Why the last listing failed; None if it went well."""
        self.on_shown: Callable[[set[int]], None] = lambda _: None
        """Told of the chunk sizes of all images, in bytes, when other images are to be shown."""

    async def restore(self, *, fresh: bool) -> None:
        """Show what the last listing had. `fresh`: no kernel knows inodes of an earlier daemon."""
        self._known = await trio.to_thread.run_sync(self._names.images)
        versions = await trio.to_thread.run_sync(self._names.versions)
        tree = Tree(known.image for known in self._known.values())
        if fresh:
            gone = set(versions) - set(tree.nodes)
            await trio.to_thread.run_sync(self._names.forget_versions, gone)
        else:
            self._vfs.remember(versions)
        self._vfs.show(tree)

    async def run(self, refresh_s: float) -> None:
        """Read the list again and again until cancelled."""
        while True:
            await self.refresh()
            await trio.sleep(refresh_s)

    async def refresh(self) -> None:
        """Read the list once; an outage leaves what is shown as it is."""
        async with self._refreshing:  # an older list must not come after a newer one
            await self._refresh()

    async def _refresh(self) -> None:
        etags = {name: known.etag for name, known in self._known.items()}
        self._metrics.refreshes += 1
        try:
            answer = await self._pool.ask(ListJob(self._pool.next_number(), etags), _LIST_PRIORITY)
        except CachefsError as error:
            self._metrics.refresh_errors += 1
            if self.last_error is None:
                logger.warning("cannot list the images, showing the last list: %s", error)
            self.last_error = str(error)
            return
        if self.last_error is not None:
            logger.warning("the list of images can be read again")
            self.last_error = None
        if not isinstance(answer, Done) or answer.result is None:
            return
        listing = answer.result
        self._complain(listing.broken)
        images = {
            name: KnownImage(listing.images[name], etag)
            if name in listing.images
            else self._known[name]
            for name, etag in listing.etags.items()
            if name in listing.images or name in self._known
        }
        if images != self._known:
            try:
                await self._show(images)
            except CacheError as error:  # a full disk: what was not written is not shown
                self.last_error = f"the cache folder does not take the new list: {error}"
                logger.warning("%s", self.last_error)

    def manifests(self) -> set[str]:
        """Return the manifests of all images that are shown."""
        return {version.manifest for _, version in self._vfs.tree.files().values()}

    async def _show(self, images: dict[str, KnownImage]) -> None:
        tree = Tree(known.image for known in images.values())
        new = {i: file for i, file in tree.files().items() if i not in self._vfs.tree.nodes}
        await trio.to_thread.run_sync(self._names.add_versions, new)
        await trio.to_thread.run_sync(self._names.replace_images, images)
        self._known = images
        self.on_shown({version.chunk_bytes for _, version in tree.files().values()})
        self._vfs.show(tree)
        for name in tree.hidden:
            self._complain(
                {**self._complaints, name: f"image '{name}' is hidden by another's name"}
            )

    def _complain(self, complaints: dict[str, str]) -> None:
        for name, message in complaints.items():
            if self._complaints.get(name) != message:
                logger.warning("%s", message)
        self._complaints = complaints
