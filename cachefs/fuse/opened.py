"""The images that are open: their tables, and reads of them by inode."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable

import pyfuse3

from cachefs.errors import CachefsError, CorruptError, TableDamagedError
from cachefs.fuse.boundary import handler, holding
from cachefs.index.manifest_table import ManifestTable
from cachefs.reader import Reader
from cachefs.tiers.board import Board
from cachefs.vfs import FileNode, FolderNode, Vfs

TableOf = Callable[[str], Awaitable[ManifestTable]]


class OpenImages:
    """What `open` has found, by inode, so that a read needs no look-up.

    `open_table` and `renew_table` get a manifest's id. Without a board no image has a place there.
    """

    def __init__(
        self,
        vfs: Vfs,
        reader: Reader,
        open_table: TableOf,
        renew_table: TableOf,
        board: Board | None = None,
    ) -> None:
        self._vfs = vfs
        self._reader = reader
        self._open_table = open_table
        self._renew_table = renew_table
        self._board = board
        self._tables: dict[int, ManifestTable] = {}
        self.on_closed: Callable[[int], None] = lambda _: None
        """Told of each handle that was closed."""

    def table_of(self, inode: int) -> ManifestTable | None:
        """Return the table of an image that is being read."""
        return self._tables.get(inode)

    async def open(self, inode: int) -> ManifestTable:
        """Return an image's table, fetched if need be."""
        table = await self._open_table(self._file(inode).version.manifest)
        return self._checked(inode, table)

    def close(self, inode: int) -> None:
        """Forget an image's table; another handle of the same version finds it again."""
        self.on_closed(inode)
        self._tables.pop(inode, None)

    def read_hit(self, inode: int, offset: int, size_bytes: int) -> memoryview | None:
        """Return bytes of an image if they are here now; valid until the next call."""
        table = self._tables.get(inode)
        if table is None:
            return None
        return self._reader.read_hit(table, offset, size_bytes, inode)

    @handler
    async def read(self, inode: int, offset: int, size_bytes: int) -> bytes | memoryview:
        """Return bytes of an image, the long way; valid until something else runs here.

        Raises:
            FUSEError: they can't be had.
        """
        name, holds = getattr(self._vfs.node(inode), "name", inode), self._vfs.holds(inode)
        with holding(f"a read of image '{name}'", holds=holds):
            try:
                return await self._read(inode, offset, size_bytes, holds=holds)
            except CachefsError as error:
                raise type(error)(f"image '{name}': {error}") from error

    async def _read(
        self, inode: int, offset: int, size_bytes: int, *, holds: bool
    ) -> bytes | memoryview:
        table = self._tables.get(inode) or await self.open(inode)
        self._place(inode, table)  # it may have lost its place
        try:
            return await self._reader.read(table, offset, size_bytes, inode, holds=holds)
        except TableDamagedError:
            self._tables.pop(inode, None)
            table = await self._renew_table(self._file(inode).version.manifest)
            table = self._checked(inode, table)
            return await self._reader.read(table, offset, size_bytes, inode, holds=holds)

    def _checked(self, inode: int, table: ManifestTable) -> ManifestTable:
        """A size that differs would make the kernel fill the rest with zeros."""
        node = self._file(inode)
        if table.size_bytes != node.version.size_bytes:
            raise CorruptError(f"image '{node.name}' and its manifest disagree about its size")
        self._tables[inode] = table
        self._place(inode, table)
        return table

    def _place(self, inode: int, table: ManifestTable) -> None:
        if self._board:
            holds = self._vfs.holds(inode)
            self._board.place(inode, table.size_bytes, table.chunk_bytes, holds=holds)

    def _file(self, inode: int) -> FileNode:
        node = self._vfs.node(inode)
        if isinstance(node, FolderNode):
            raise pyfuse3.FUSEError(errno.EISDIR)
        return node
