"""Whether the disk of a cache folder gives what a start needs of it."""

from __future__ import annotations

import os
from pathlib import Path

from cachefs.errors import CacheError
from cachefs.index.folder import open_folder
from cachefs.units import MIB

_HEAD_BYTES = 64 * 1024
_READ_BYTES = 8 * MIB


def check_folder(path: Path, store_identity: str, *, whole: bool, wait_s: float = 5.0) -> None:
    """Open a cache folder, read its index, and close it again. Blocks as long as the disk does.

    LMDB reads through a memory map, where a page that the disk does not give ends the process with
    SIGBUS, or holds it; here that is an error, or a thread that waits. `whole`: read all of the
    index; else its beginning.

    Raises:
        CachefsError: it cannot be used now; see `open_folder`.
    """
    folder = open_folder(path, store_identity, wait_s)
    try:
        _read(folder.index_path / "data.mdb", None if whole else _HEAD_BYTES)
    except FileNotFoundError:
        pass  # it is made anew
    except OSError as error:
        raise CacheError(f"cannot read the index {folder.index_path}: {error.strerror}") from error
    finally:
        folder.close()


def _read(path: Path, most_bytes: int | None) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        at = 0
        while most_bytes is None or at < most_bytes:
            found = len(os.pread(fd, min(_READ_BYTES, most_bytes or _READ_BYTES), at))
            if not found:
                return
            at += found
    finally:
        os.close(fd)
