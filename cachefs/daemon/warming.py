"""`cachefs warm`: what the control socket answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trio

from cachefs.errors import ConflictError, NotFoundError, UsageError
from cachefs.index.manifest_table import ManifestTable
from cachefs.policy.prefetch.known import places_of
from cachefs.policy.prefetch.profile import Profile
from cachefs.prefetch.image import OpenImage
from cachefs.prefetch.prefetcher import Prefetcher
from cachefs.prefetch.profiles import Profiles, read_profile
from cachefs.prefetch.warm import Ranges, Warming, of_bytes, whole
from cachefs.units import format_size
from cachefs.vfs import FileNode, Vfs

_MOST_AT_ONCE = 8


class Warmings:
    """The images that are being warmed, and how those that were last ended."""

    def __init__(
        self,
        nursery: trio.Nursery,
        vfs: Vfs,
        prefetcher: Prefetcher | None,
        profiles: Profiles | None,
        table_of: Callable[[str], Awaitable[ManifestTable]],
    ) -> None:
        self._nursery = nursery
        self._vfs = vfs
        self._prefetcher = prefetcher
        self._profiles = profiles
        self._table_of = table_of
        self._warmings: dict[str, Warming] = {}
        """By name; the last one of each."""

    async def command(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer `cachefs warm`.

        Raises:
            CachefsError: there is nothing to do that with.
        """
        action, name = request.get("action"), str(request.get("name", ""))
        if action == "start":
            await self._start(name, request)
        elif action == "cancel":
            self._known(name).scope.cancel()
        elif action != "show":
            raise UsageError(f"cannot '{action}' a warming")
        if not name:
            return {"images": {n: w.progress.to_dict() for n, w in self._warmings.items()}}
        return self._known(name).progress.to_dict() | {"name": name}

    async def _start(self, name: str, request: dict[str, Any]) -> None:
        if self._prefetcher is None:
            raise UsageError("this mount fetches nothing ahead: mount it without 'noprefetch'")
        node = self._node(name)
        table = await self._table_of(node.version.manifest)
        ranges = await self._ranges(node, table, request)
        # From here on nothing is awaited: of two that ask at once one is first.
        running = [n for n, w in self._warmings.items() if w.progress.state == "running"]
        if name in running:
            raise ConflictError(f"'{name}' is being warmed already")
        if len(running) >= _MOST_AT_ONCE:
            raise ConflictError(f"{len(running)} images are being warmed already")
        warming = Warming(
            self._prefetcher.jobs,
            self._prefetcher.limits,
            node.inode,
            table,
            ranges,
            int(request.get("bytes_per_s", 0)),
        )
        self._warmings[name] = warming
        self._nursery.start_soon(warming.run)

    async def _ranges(
        self, node: FileNode, table: ManifestTable, request: dict[str, Any]
    ) -> Ranges:
        """Return what is to be warmed, in its order: by a profile, ranges in bytes, or all."""
        if path := request.get("profile"):
            profile = await trio.to_thread.run_sync(read_profile, Path(str(path)))
        elif request.get("boot_set"):
            if self._profiles is None:
                raise UsageError("nothing is learned here, so no boot set is known")
            profile = await self._profiles.of(node.name)
        elif parts := request.get("ranges"):
            return [of_bytes(table, begin, end) for begin, end in parts]
        else:
            return whole(table)
        image = OpenImage(node.inode, table)
        return await trio.to_thread.run_sync(_places_in, image, profile)

    def _known(self, name: str) -> Warming:
        warming = self._warmings.get(name)
        if warming is None:
            raise NotFoundError(f"'{name}' was not warmed since this daemon started")
        return warming

    def _node(self, name: str) -> FileNode:
        for node in self._vfs.tree.nodes.values():
            if isinstance(node, FileNode) and node.name == name:
                return node
        raise NotFoundError(f"there is no image '{name}' here")


def _places_in(image: OpenImage, profile: Profile) -> Ranges:
    """Return where an image has what a profile knows. Blocks.

    Raises:
        UsageError: it has none of it.
    """
    rows = profile.sections.get("replay")
    places = [] if rows is None else places_of(rows, image)
    if not places:
        of = f"the profile of '{profile.image}' with chunks of {format_size(profile.chunk_bytes)}"
        raise UsageError(
            f"this image, with chunks of {format_size(image.chunk_bytes)}, has nothing of {of}"
        )
    return places
