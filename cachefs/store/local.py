"""Objects in a local folder.

An object appears by rename, after its bytes and before its folder are synced, so it is complete or
absent whenever the machine stops. Conditional writes are serialised by a lock file. The folder and
those directly in it are made by `create` alone: where one is missing later, the file system is not
mounted or somebody moved it, and nothing may be written in its place.
"""

from __future__ import annotations

import errno
import fcntl
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cachefs.errors import (
    CachefsError,
    ConflictError,
    CorruptError,
    ObjectMissingError,
    StoreUnavailableError,
    UsageError,
)
from cachefs.store.objects import ObjectInfo

_TEMPORARY_PREFIX = ".tmp-"
_LOCK_NAME = ".lock"
_MARK = "cachefs.json"
"""What tells a store's folder from any other, above all from a mount point with nothing mounted."""
_MISSING = {errno.ENOENT, errno.ENOTDIR}


class LocalObjects:
    """Objects as files below the folder `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = f"file://{root}"

    def create(self, folders: Iterable[str]) -> None:
        """Make the folder of the store and those in it; what is there already stays.

        Raises:
            UsageError: it holds other files.
        """
        known = {folder.rstrip("/") for folder in folders} | {_MARK}
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            entries = {entry.name for entry in self.root.iterdir()}
            foreign = {name for name in entries - known if not name.startswith(".")}
            if foreign and _MARK not in entries:
                raise UsageError(
                    f"{self.root} holds other files ({min(foreign)}): "
                    "give an empty folder for the store"
                )
            for folder in folders:
                (self.root / folder).mkdir(exist_ok=True)
            _sync_folder(self.root)
        except OSError as error:
            raise StoreUnavailableError(
                f"cannot make a store in {self.root}: {error.strerror}"
            ) from error

    def get(self, key: str) -> tuple[bytes, str]:
        """See ObjectStore."""
        with self._errors("read", key), open(self.root / key, "rb", buffering=0) as file:
            return file.readall() or b"", _etag(os.fstat(file.fileno()))

    def get_range(self, key: str, offset: int, size_bytes: int) -> bytes:
        """See ObjectStore."""
        with self._errors("read", key), open(self.root / key, "rb", buffering=0) as file:
            data = os.pread(file.fileno(), size_bytes, offset)
            if len(data) < size_bytes:  # a large pread may come in pieces
                data = _read_rest(file.fileno(), data, offset, size_bytes)
        if len(data) < size_bytes:
            raise CorruptError(
                f"{self.url}/{key} is cut short: it ends before byte {offset + size_bytes}"
            )
        return data

    def get_tail(self, key: str, size_bytes: int) -> tuple[bytes, int]:
        """See ObjectStore."""
        with self._errors("read", key), open(self.root / key, "rb", buffering=0) as file:
            whole_bytes = os.fstat(file.fileno()).st_size
            offset = max(0, whole_bytes - size_bytes)
            return _read_rest(file.fileno(), b"", offset, whole_bytes - offset), whole_bytes

    def put(self, key: str, data: bytes) -> None:
        """See ObjectStore."""
        path = self.root / key
        with self._errors("write", key):
            self._require_top(key)
            if not path.is_file():
                self._write(path, data)

    def put_if(self, key: str, data: bytes, etag: str | None) -> str:
        """See ObjectStore."""
        path = self.root / key
        with self._errors("write", key):
            self._require_top(key)
            with self._locked():
                if _found_etag(path) != etag:
                    raise ConflictError(f"{key} was changed by somebody else: try again")
                return self._write(path, data)

    def delete(self, key: str, etag: str | None = None) -> None:
        """See ObjectStore."""
        path = self.root / key
        with self._errors("delete", key):
            self._require_top(key)
            with self._locked():
                found = _found_etag(path)
                if found is None:
                    return
                if etag not in {None, found}:
                    raise ConflictError(f"{key} was changed by somebody else: try again")
                path.unlink()
                _sync_folder(path.parent)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See ObjectStore."""
        with self._errors("list", prefix):
            yield from self._walk(self.root / prefix)

    def _walk(self, folder: Path) -> Iterator[ObjectInfo]:
        try:
            with os.scandir(folder) as found:
                entries = sorted(found, key=_key_order)
        except FileNotFoundError:
            self._require_top(f"{folder.relative_to(self.root)}/")
            return  # nothing was ever written there
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from self._walk(Path(entry.path))
                continue
            try:
                stat = entry.stat()
            except FileNotFoundError:  # removed while we were listing
                continue
            key = os.path.relpath(entry.path, self.root)
            yield ObjectInfo(key, stat.st_size, _etag(stat))

    def _write(self, path: Path, data: bytes) -> str:
        self._make_folder(path.parent)
        temporary = path.parent / f"{_TEMPORARY_PREFIX}{uuid.uuid4().hex}"
        try:
            with open(temporary, "wb", buffering=0) as file:
                view = memoryview(data)
                while view:
                    view = view[file.write(view) :]
                os.fsync(file.fileno())
                etag = _etag(os.fstat(file.fileno()))
            temporary.rename(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
        return etag

    def _make_folder(self, folder: Path) -> None:
        if folder.is_dir():
            return
        self._make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fd = os.open(self.root / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    @contextmanager
    def _errors(self, verb: str, key: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._mapped(error, verb, key) from error

    def _mapped(self, error: OSError, verb: str, key: str) -> CachefsError:
        """Tell a missing object from a store that is not there (unmounted, moved, unreadable)."""
        if error.errno in _MISSING and self._has_top(key):
            return ObjectMissingError(f"{self.url} has no {key}")
        if error.errno in _MISSING and key == _MARK and self.root.is_dir():
            return ObjectMissingError(f"{self.url} has no {_MARK}: it is not a store")
        return StoreUnavailableError(f"cannot {verb} {self.url}/{key}: {error.strerror or error}")

    def _has_top(self, key: str) -> bool:
        """Whether the store is there, and the folder in it that `key` would lie in."""
        top, slash, _ = key.partition("/")
        return (self.root / _MARK).exists() and (not slash or (self.root / top).is_dir())

    def _require_top(self, key: str) -> None:
        if key != _MARK and not self._has_top(key):
            top = self.root / key.partition("/")[0]
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(top))


def _read_rest(fd: int, data: bytes, offset: int, size_bytes: int) -> bytes:
    parts, at = [data], len(data)
    while at < size_bytes:
        part = os.pread(fd, size_bytes - at, offset + at)
        if not part:
            break
        parts.append(part)
        at += len(part)
    return b"".join(parts)


def _key_order(entry: os.DirEntry[str]) -> str:
    """Sort a folder where its objects come: in order of keys, `a-b.json` is before `a/b.json`."""
    return f"{entry.name}/" if entry.is_dir(follow_symlinks=False) else entry.name


def _etag(stat: os.stat_result) -> str:
    """Every write makes a new file, so inode, time and size together change with the content."""
    return f"{stat.st_ino:x}-{stat.st_mtime_ns:x}-{stat.st_size:x}"


def _found_etag(path: Path) -> str | None:
    try:
        return _etag(path.stat())
    except FileNotFoundError:
        return None


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
