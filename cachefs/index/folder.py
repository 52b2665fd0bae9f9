"""The cache folder: whose it is, and that only one daemon uses it.

    cachefs-cache.json    format and the identity of the store that it caches
    lock                  held by the daemon and its fetchers together
    index.lmdb            residency and names
    segments/<bytes>      slots, one file per class
    manifests/<id>        local manifest tables

The lock belongs to an open file that the fetchers inherit. So it is free only when the last process
that may write to a slot has gone, and a new daemon can never reuse a slot under an old fetcher.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cachefs.errors import CacheError, ConflictError, FormatError

CACHE_FORMAT = 1

_HARMLESS = {"lock", "lock.tmp", "lost+found"}
"""What a start that was interrupted leaves, and what a file system of its own has."""


@dataclass(frozen=True, slots=True)
class CacheFolder:
    """An opened and locked cache folder. `lock_fd` is to be inherited by fetchers."""

    path: Path
    lock_fd: int

    @property
    def index_path(self) -> Path:
        """Where the LMDB environment is."""
        return self.path / "index.lmdb"

    @property
    def segments_path(self) -> Path:
        """The folder of the segment files."""
        return self.path / "segments"

    @property
    def manifests_path(self) -> Path:
        """The folder of the local manifest tables."""
        return self.path / "manifests"

    def close(self) -> None:
        """Give up the lock (it stays held while a fetcher lives)."""
        os.close(self.lock_fd)


def open_folder(path: Path, store_identity: str | None, wait_s: float = 5.0) -> CacheFolder:
    """Make or open a cache folder and lock it, waiting for a daemon that is just ending.

    `store_identity` None means that the store cannot be asked now: an existing folder is trusted.

    Raises:
        ConflictError: another daemon uses it.
        FormatError: it caches another store, is of another format, or is no cache folder.
        CacheError: it cannot be made or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock_fd = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CacheError(f"cannot use the cache folder {path}: {error.strerror}") from error
    try:
        _lock(lock_fd, path, wait_s)
        _check_identity(path, store_identity)
        for name in ("segments", "manifests"):
            (path / name).mkdir(exist_ok=True)
    except OSError as error:
        os.close(lock_fd)
        raise CacheError(f"cannot use the cache folder {path}: {error.strerror}") from error
    except BaseException:
        os.close(lock_fd)
        raise
    return CacheFolder(path, lock_fd)


def cached_identity(path: Path) -> str | None:
    """Return the identity of the store that a folder caches, None if it is new or unreadable."""
    try:
        return str(json.loads((path / "cachefs-cache.json").read_text())["store"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _lock(lock_fd: int, path: Path, wait_s: float) -> None:
    give_up_s = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > give_up_s:
                holder = os.pread(lock_fd, 32, 0).decode(errors="replace").strip() or "unknown"
                raise ConflictError(
                    f"the cache folder {path} is in use by process {holder}: "
                    "unmount that mount, or give this one its own --cache-dir"
                ) from None
            time.sleep(0.05)
    with suppress(OSError):  # only a message wants to know who it is; the disk may be full
        os.ftruncate(lock_fd, 0)
        os.pwrite(lock_fd, f"{os.getpid()}\n".encode(), 0)


def _check_identity(path: Path, store_identity: str | None) -> None:
    description = path / "cachefs-cache.json"
    if not description.exists():
        foreign = sorted(entry.name for entry in path.iterdir() if entry.name not in _HARMLESS)
        if foreign:
            raise FormatError(
                f"{path} is no cache folder (it holds {foreign[0]}): "
                "give an empty or new --cache-dir"
            )
        if store_identity is None:
            raise CacheError(f"the cache folder {path} is new and the store cannot be asked now")
        temporary = path / "lock.tmp"
        temporary.write_text(json.dumps({"format": CACHE_FORMAT, "store": store_identity}))
        temporary.rename(description)
        return
    try:
        record = json.loads(description.read_text())
        number, store = record["format"], record["store"]
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(
            f"{description} cannot be understood: {error!r}; remove the folder"
        ) from error
    if number != CACHE_FORMAT:
        raise FormatError(
            f"the cache folder {path} has format {number}, this cachefs knows {CACHE_FORMAT}: "
            "remove it"
        )
    if store_identity is not None and store != store_identity:
        raise FormatError(
            f"the cache folder {path} belongs to another store: "
            "give this mount its own --cache-dir, or remove the folder"
        )
