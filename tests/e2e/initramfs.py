"""An initramfs written without cpio, without root and without device files on the way."""

import gzip
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath


@dataclass(frozen=True)
class Entry:
    """A file, folder, link or device of an initramfs.

    Attributes:
        mode: Type and permissions, as in `st_mode`.
        content: Of a file, or where a link leads to.
        device: Major and minor number of a device.
    """

    mode: int
    content: bytes = b""
    device: tuple[int, int] = (0, 0)


CONSOLE = Entry(stat.S_IFCHR | 0o600, device=(5, 1))


def program(content: bytes) -> Entry:
    """Return an executable file."""
    return Entry(stat.S_IFREG | 0o755, content)


def build_initramfs(entries: Mapping[str, Entry]) -> bytes:
    """Return a gzipped cpio archive ("newc", Documentation/driver-api/early-userspace of Linux).

    Args:
        entries: By path without a leading slash; folders on the way are added.
    """
    folders = {str(parent) for path in entries for parent in PurePosixPath(path).parents}
    whole = {folder: Entry(stat.S_IFDIR | 0o755) for folder in sorted(folders - {"."})}
    whole.update(entries)
    records = [
        _record(number, path, entry) for number, (path, entry) in enumerate(whole.items(), 1)
    ]
    records.append(_record(0, "TRAILER!!!", Entry(0)))
    return gzip.compress(b"".join(records), compresslevel=1)


def _record(number: int, path: str, entry: Entry) -> bytes:
    name = path.encode() + b"\0"
    links = 1
    owner, group, time_s, check = 0, 0, 0, 0
    fields = [number, entry.mode, owner, group, links, time_s, len(entry.content)]
    fields += [0, 0, *entry.device, len(name), check]
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name
    return _padded(head) + _padded(entry.content)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
