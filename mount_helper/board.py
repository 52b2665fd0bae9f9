"""The board: memory that the lane and the daemons of a mount share. board.h says what is on it.

The supervisor makes it before the first daemon and keeps it to its own end, so that what a daemon
has said about L1 outlives it, and the lane goes on to serve.
"""

import fcntl
import os

from mount_helper import _lane

F_ADD_SEALS, F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW = 1033, 1, 2, 4


def create() -> int:
    """Return the fd of a new board. Its size is sealed: nobody can be killed by a shorter one."""
    fd = os.memfd_create("cachefs-board", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, _lane.BOARD_LAYOUT["board_bytes"])
    fcntl.fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW)
    _lane.Board(fd, is_new=True)
    return fd
