"""The least that a Python program can do with pyfuse3: one file, each read a pread.

Run it as `python bench/servers/bare_pyfuse3.py FILE MOUNTPOINT`; it stays in the foreground until
SIGTERM or unmount. Its speed is the ceiling of any read that passes through Python.
"""

import errno
import os
import signal
import stat
import sys
from collections.abc import Sequence

import pyfuse3
import trio

IMAGE_NAME = b"image"
IMAGE_INODE = pyfuse3.InodeT(2)
FOREVER_S = 86400.0


class OneFile(pyfuse3.Operations):
    """A file system of one file, whose bytes are those of a file on the disk."""

    def __init__(self, image_fd: int) -> None:
        super().__init__()
        self._image_fd = image_fd
        self._image_bytes = os.fstat(image_fd).st_size

    def _attributes(self, inode: pyfuse3.InodeT) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        entry.attr_timeout = FOREVER_S
        entry.entry_timeout = FOREVER_S
        if inode == pyfuse3.ROOT_INODE:
            entry.st_mode = pyfuse3.ModeT(stat.S_IFDIR | 0o755)
            entry.st_nlink = 2
        else:
            entry.st_mode = pyfuse3.ModeT(stat.S_IFREG | 0o444)
            entry.st_size = self._image_bytes
        return entry

    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Return the attributes of the one file."""
        if parent_inode != pyfuse3.ROOT_INODE or name != IMAGE_NAME:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return self._attributes(IMAGE_INODE)

    async def getattr(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Return the attributes of the folder or the file."""
        return self._attributes(inode)

    async def open(
        self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.FileInfo:
        """Open the file; the kernel may keep its pages."""
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(self._image_fd), keep_cache=True)

    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        """Return `size` bytes from the file."""
        return os.pread(fh, size, off)


async def serve() -> None:
    """Answer requests until the file system is unmounted or SIGTERM arrives."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(end_on_sigterm)
        await pyfuse3.main()
        nursery.cancel_scope.cancel()


async def end_on_sigterm() -> None:
    """Turn SIGTERM into the end of `serve`."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            pyfuse3.terminate()


def main(arguments: Sequence[str]) -> None:
    """Mount FILE at MOUNTPOINT and serve it."""
    image, mountpoint = arguments
    operations = OneFile(os.open(image, os.O_RDONLY | os.O_CLOEXEC))
    options = {*pyfuse3.default_options, "fsname=bare_pyfuse3"}
    pyfuse3.init(operations, mountpoint, options)
    try:
        trio.run(serve)
    finally:
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    main(sys.argv[1:])
