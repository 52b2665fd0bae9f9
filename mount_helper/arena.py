"""The arena: memory that a daemon and the lane share, for the bytes of reads.

A reply of 1 MiB through a socket is copied twice more than needed, and wants 1 MiB of contiguous
kernel memory. So the daemon fills a buffer of the arena and sends only a reference; the lane writes
the buffer to the kernel and sets it free.

    0      HEADER: magic, version, buffers, bytes of a buffer, cookie
    64     one byte a buffer: 0 free, 1 taken. The daemon sets 1, the lane sets 0
    4096   the buffers

Each answer of such a daemon to a read begins with a REFERENCE: cookie, buffer (or INLINE), length.
With INLINE the bytes follow; else they are in the buffer. The cookie is random: it tells a
reference from whatever else.

Memory order: a taken buffer belongs to the daemon until it has sent the reference, then to the lane
until it has set the byte to 0. The socket orders the first hand-over, a release store the second.

This is the one definition of the layout in Python; lane.c has the same in C, and a test compares
them.
"""

import fcntl
import mmap
import os
import secrets
import struct

MAGIC = b"CACHEFSR"
VERSION = 1
BUFFERS = 16
BUFFER_BYTES = 1 << 20
HEADER = struct.Struct("<8sIIQQ")
STATES_AT = 64
BUFFERS_AT = 4096
REFERENCE = struct.Struct("<QII")
INLINE = 0xFFFFFFFF

SIZE_BYTES = BUFFERS_AT + BUFFERS * BUFFER_BYTES
F_ADD_SEALS, F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW = 1033, 1, 2, 4

LAYOUT = (
    MAGIC.decode(),
    VERSION,
    BUFFERS,
    BUFFER_BYTES,
    INLINE,
    STATES_AT,
    BUFFERS_AT,
    REFERENCE.size,
)
"""The layout, to be compared with the one that lane.c was compiled with."""


def create() -> int:
    """Return the fd of a new arena. Its size is sealed: nobody can be killed by a shorter one."""
    fd = os.memfd_create("cachefs-arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, SIZE_BYTES)
    os.pwrite(fd, HEADER.pack(MAGIC, VERSION, BUFFERS, BUFFER_BYTES, secrets.randbits(64)), 0)
    fcntl.fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW)
    return fd


class Arena:
    """The daemon's side of an arena."""

    def __init__(self, fd: int) -> None:
        self._memory = mmap.mmap(fd, SIZE_BYTES)
        magic, version, buffers, _, self.cookie = HEADER.unpack_from(self._memory)
        if magic != MAGIC or version != VERSION or buffers != BUFFERS:
            raise ValueError("this is no arena of this version")
        view = memoryview(self._memory)
        starts = range(BUFFERS_AT, SIZE_BYTES, BUFFER_BYTES)
        self.buffers = [view[start : start + BUFFER_BYTES] for start in starts]

    def free_buffer(self) -> int:
        """Return the number of the first free buffer, -1 if all are taken."""
        found = self._memory.find(b"\0", STATES_AT, STATES_AT + BUFFERS)
        return found - STATES_AT if found >= 0 else -1

    def take(self, number: int) -> None:
        """Say that a buffer holds a reply, until the lane has written it."""
        self._memory[STATES_AT + number] = 1
