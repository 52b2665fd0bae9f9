"""The FUSE operations: from the kernel's words to vfs and reader, and back. No logic of its own.

Everything is read-only. An open for writing succeeds all the same, because qemu opens memory files
so; the write itself is refused. A file handle is the inode, so it survives a restart of the daemon.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Awaitable, Callable, Sequence

import pyfuse3

from cachefs.fuse.boundary import handler, holding
from cachefs.fuse.opened import OpenImages
from cachefs.index.manifest_table import ManifestTable
from cachefs.vfs import FileNode, FolderNode, Node, Vfs

_FILE_MODE = stat.S_IFREG | 0o444
_FOLDER_MODE = stat.S_IFDIR | 0o555

_ATTRIBUTES_VALID_S = 24 * 3600.0
"""A version never changes, so neither do its attributes."""

_BLOCK_BYTES = 4096
_NAME_BYTES = 255


class Operations(pyfuse3.Operations):
    """One mount.

    `names_valid_s` is how long the kernel may keep a name without asking; `opened` is told of
    images that were opened.
    """

    supports_dot_lookup = True
    enable_writeback_cache = False

    def __init__(
        self,
        vfs: Vfs,
        images: OpenImages,
        xattrs: dict[str, Callable[[FileNode], Awaitable[bytes]]],
        names_valid_s: float,
        opened: Callable[[int, ManifestTable], None] = lambda *_: None,
    ) -> None:
        super().__init__()
        self._vfs = vfs
        self._images = images
        self._xattrs = xattrs
        self._names_valid_s = names_valid_s
        self._opened = opened

    @handler
    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Find a name in a folder."""
        return self._attributes(self._vfs.lookup(parent_inode, os.fsdecode(name)))

    @handler
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """Return attributes."""
        return self._attributes(self._vfs.node(inode))

    @handler
    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        """Refuse."""
        raise pyfuse3.FUSEError(errno.EROFS)

    @handler
    async def access(self, inode: int, mode: int, ctx: pyfuse3.RequestContext) -> bool:
        """Everybody who reaches the mount may read; nobody may write."""
        node = self._vfs.node(inode)
        if mode & os.W_OK:
            raise pyfuse3.FUSEError(errno.EROFS)
        return not mode & os.X_OK or isinstance(node, FolderNode)

    @handler
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        """Open a folder."""
        if not isinstance(self._vfs.node(inode), FolderNode):
            raise pyfuse3.FUSEError(errno.ENOTDIR)
        return inode

    @handler
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """List a folder, from the inode after `start_id`."""
        for name, node in self._vfs.entries(fh, start_id):
            attributes = self._attributes(node)
            if not pyfuse3.readdir_reply(token, os.fsencode(name), attributes, node.inode):
                break

    @handler
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        """Open an image; the kernel may keep its pages for ever, since a version never changes."""
        if flags & os.O_TRUNC:
            raise pyfuse3.FUSEError(errno.EROFS)
        with holding(f"the open of inode {inode}", holds=self._vfs.holds(inode)):
            self._opened(inode, await self._images.open(inode))
        # Writes through a shared map would lie in the page cache for every reader to see: the
        # kernel refuses such maps of a file that was opened so, and allows private ones.
        for_writing = flags & os.O_ACCMODE != os.O_RDONLY
        return pyfuse3.FileInfo(fh=inode, keep_cache=True, direct_io=for_writing)

    async def read(  # type: ignore[override] # pyfuse3 takes any buffer, its stubs say bytes
        self, fh: int, off: int, size: int
    ) -> bytes | memoryview:
        """Read from an image, for a lane that passes reads on like all else."""
        hit = self._images.read_hit(fh, off, size)
        return await self._images.read(fh, off, size) if hit is None else hit

    @handler
    async def release(self, fh: int) -> None:
        """Close an image."""
        self._images.close(fh)

    @handler
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        """A full file system of the size of all images."""
        data = pyfuse3.StatvfsData()
        tree = self._vfs.tree
        data.f_bsize = data.f_frsize = _BLOCK_BYTES
        data.f_blocks = -(-tree.image_bytes // _BLOCK_BYTES)
        data.f_bfree = data.f_bavail = 0
        data.f_files = len(tree.nodes)
        data.f_ffree = data.f_favail = 0
        data.f_namemax = _NAME_BYTES
        return data

    @handler
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        """Return the names of what is told of an image."""
        if isinstance(self._vfs.node(inode), FolderNode):
            return []
        return [name.encode() for name in self._xattrs]

    @handler
    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        """Return one of `user.cachefs.*`."""
        node = self._vfs.node(inode)
        told = self._xattrs.get(os.fsdecode(name))
        if told is None or not isinstance(node, FileNode):
            raise pyfuse3.FUSEError(pyfuse3.ENOATTR)
        return await told(node)

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """Refuse."""
        raise pyfuse3.FUSEError(errno.EROFS)

    async def create(
        self, *_: object, **__: object
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        """Refuse."""
        raise pyfuse3.FUSEError(errno.EROFS)

    async def mknod(self, *_: object, **__: object) -> pyfuse3.EntryAttributes:
        """Refuse."""
        raise pyfuse3.FUSEError(errno.EROFS)

    async def mkdir(self, *_: object, **__: object) -> pyfuse3.EntryAttributes:
        """Refuse."""
        raise pyfuse3.FUSEError(errno.EROFS)

    async def symlink(self, *_: object, **__: object) -> pyfuse3.EntryAttributes:
        """Refuse."""
        raise pyfuse3.FUSEError(errno.EROFS)

    async def link(self, *_: object, **__: object) -> pyfuse3.EntryAttributes:
        """Refuse."""
        raise pyfuse3.FUSEError(errno.EROFS)

    async def unlink(self, *_: object, **__: object) -> None:
        """Refuse: images are removed in the store, by `cachefs rm`."""
        raise pyfuse3.FUSEError(errno.EROFS)

    async def rmdir(self, *_: object, **__: object) -> None:
        """Refuse."""
        raise pyfuse3.FUSEError(errno.EROFS)

    async def rename(self, *_: object, **__: object) -> None:
        """Refuse: images are renamed in the store, by `cachefs rename`."""
        raise pyfuse3.FUSEError(errno.EROFS)

    async def setxattr(self, *_: object, **__: object) -> None:
        """Refuse."""
        raise pyfuse3.FUSEError(errno.EROFS)

    async def removexattr(self, *_: object, **__: object) -> None:
        """Refuse."""
        raise pyfuse3.FUSEError(errno.EROFS)

    def _attributes(self, node: Node) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = node.inode
        entry.generation = 0
        entry.entry_timeout = self._names_valid_s
        entry.st_uid = entry.st_gid = 0
        entry.st_blksize = _BLOCK_BYTES
        if isinstance(node, FileNode):
            entry.st_mode = _FILE_MODE
            entry.st_nlink = 1
            entry.st_size = node.version.size_bytes
            entry.st_blocks = -(-node.version.data_bytes // 512)
            entry.attr_timeout = _ATTRIBUTES_VALID_S
            modified_ns = node.modified_ns
        else:
            entry.st_mode = _FOLDER_MODE
            entry.st_nlink = 2
            entry.attr_timeout = self._names_valid_s
            modified_ns = self._vfs.tree.modified_ns
        entry.st_mtime_ns = entry.st_ctime_ns = entry.st_atime_ns = modified_ns
        return entry
