"""Export: an image from the store becomes a sparse file, complete or absent, or a stream."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

from cachefs.errors import CachefsError, UsageError
from cachefs.ingest.chunks import read_chunks
from cachefs.model.manifest import Manifest
from cachefs.store.store import Store
from cachefs.units import MIB

_ZEROS = bytes(MIB)

OnBytes = Callable[[int], None]
"""Told how far into the image the export is."""


def export_to_file(
    store: Store, name: str, manifest: Manifest, path: str, force: bool, on_bytes: OnBytes
) -> None:
    """Write an image to a file, with holes for zero chunks; it is there once it is complete.

    Args:
        store: Where the image is.
        name: Of the image, for messages.
        manifest: Of the version to export.
        path: The file.
        force: Whether a file that is there is replaced.
        on_bytes: Progress.

    Raises:
        CachefsError: the file cannot be written.
        CorruptError: a chunk is damaged.
        UsageError: there is a file already, or the path is no place for one.
    """
    target = Path(os.path.realpath(path))
    check_target(path, force)
    try:
        fd, temporary = tempfile.mkstemp(prefix=f".{target.name[:100]}.", dir=target.parent)
        try:
            _write_sparse(fd, store, name, manifest, on_bytes)
            os.fchmod(fd, 0o666 & ~_umask())
            os.fsync(fd)
            check_target(path, force)
            os.rename(temporary, target)
        except BaseException:
            os.unlink(temporary)
            raise
        finally:
            os.close(fd)
    except OSError as error:
        raise CachefsError(f"cannot write {path}: {error.strerror}") from error


def export_to_stream(
    store: Store, name: str, manifest: Manifest, fd: int, on_bytes: OnBytes
) -> None:
    """Write an image to an open file in order, zeros and all.

    Raises:
        BrokenPipeError: the reader went away.
        CorruptError: a chunk is damaged; what was written is no whole image.
    """
    at = 0
    for run in read_chunks(store, name, manifest):
        _write_zeros(fd, run.offset - at)
        at = run.offset
        for plain in run.plains:
            _write_all(fd, plain)
            at += len(plain)
        on_bytes(at)
    _write_zeros(fd, manifest.size_bytes - at)
    on_bytes(manifest.size_bytes)


def check_target(path: str, force: bool) -> None:
    """Check that a file may be written at `path`.

    Raises:
        UsageError: it may not; the message says why.
    """
    target = Path(os.path.realpath(path))
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        if not target.parent.is_dir():
            raise UsageError(f"there is no folder {target.parent}") from None
        return
    if not stat.S_ISREG(mode):
        raise UsageError(
            f"{target} is not a regular file: to write to it, export to - and redirect"
        )
    if not force:
        raise UsageError(f"{target} exists: give --force to replace it, or another name")


def _write_sparse(fd: int, store: Store, name: str, manifest: Manifest, on_bytes: OnBytes) -> None:
    os.ftruncate(fd, manifest.size_bytes)
    for run in read_chunks(store, name, manifest):
        os.lseek(fd, run.offset, os.SEEK_SET)
        for plain in run.plains:
            _write_all(fd, plain)
        on_bytes(run.offset + sum(len(plain) for plain in run.plains))
    on_bytes(manifest.size_bytes)


def _write_zeros(fd: int, size_bytes: int) -> None:
    while size_bytes > 0:
        size_bytes -= os.write(fd, _ZEROS[:size_bytes] if size_bytes < len(_ZEROS) else _ZEROS)


def _write_all(fd: int, plain: bytes | memoryview) -> None:
    rest = memoryview(plain)
    while rest:
        rest = rest[os.write(fd, rest) :]


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
