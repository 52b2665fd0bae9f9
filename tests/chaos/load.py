"""Readers that compare every byte, for as long as the chaos lasts.

A read of more than one request of which a later one fails comes back short, as POSIX has it; as any
careful program the readers then ask for the rest, which gives them the error or the bytes.
"""

import errno
import mmap
import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

_SIZES = (4096, 16384, 65536, 200_000, 1 << 20)
_PAGE_BYTES = 4096


@dataclass
class Findings:
    """What the readers of one load found; `wrong` is what must not be."""

    reads: int = 0
    read_bytes: int = 0
    longest_s: float = 0.0
    allowed_errors: int = 0
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, size_bytes: int, took_s: float) -> None:
        with self.lock:
            self.reads += 1
            self.read_bytes += size_bytes
            self.longest_s = max(self.longest_s, took_s)


class Reader(threading.Thread):
    """Reads an image at random places, in random ways; `may_fail` says whether EIO is allowed.

    It gets the time at which a read began.
    """

    def __init__(
        self,
        path: Path,
        data: bytes,
        seed: str,
        findings: Findings,
        stop: threading.Event,
        may_fail: Callable[[float], bool],
    ) -> None:
        super().__init__(name=f"reader {seed}", daemon=True)
        self._path = path
        self._data = data
        self._random = random.Random(seed)
        self._findings = findings
        self._stop_now = stop
        self._may_fail = may_fail

    def run(self) -> None:
        while not self._stop_now.is_set():
            size_bytes = self._random.choice(_SIZES)
            offset = self._random.randrange(len(self._data))
            is_direct = self._random.random() < 0.7
            begun_s = time.monotonic()
            try:
                found = (
                    self._direct(offset, size_bytes)
                    if is_direct
                    else self._buffered(offset, size_bytes)
                )
            except OSError as error:
                self._failed(error, begun_s, offset, size_bytes)
                continue
            self._findings.note(len(found), time.monotonic() - begun_s)
            wanted = self._data[offset : offset + size_bytes]
            if found != wanted:
                how = ("direct: " if is_direct else "buffered: ") + difference(found, wanted)
                self._findings.wrong.append(f"{self._path.name}: {size_bytes} at {offset}, {how}")
            if self._random.random() < 0.2:
                self._stop_now.wait(self._random.uniform(0, 0.05))

    def _failed(self, error: OSError, begun_s: float, offset: int, size_bytes: int) -> None:
        if error.errno == errno.EIO and self._may_fail(begun_s):
            self._findings.allowed_errors += 1
        else:
            waited_s = time.monotonic() - begun_s
            self._findings.wrong.append(
                f"{self._path.name}: {size_bytes} at {offset} after {waited_s:.1f} s: {error}"
            )

    def _direct(self, offset: int, size_bytes: int) -> bytes:
        """Past the page cache: whole pages, of which a part is wanted."""
        first = offset - offset % _PAGE_BYTES
        end = min(offset + size_bytes, len(self._data))
        length = -(-(end - first) // _PAGE_BYTES) * _PAGE_BYTES
        fd = os.open(self._path, os.O_RDONLY | os.O_DIRECT)
        try:
            with mmap.mmap(-1, length) as buffer, memoryview(buffer) as whole:
                count = 0
                while first + count < end:
                    with whole[count:] as rest:
                        got = os.preadv(fd, [rest], first + count)
                    if got == 0:
                        break
                    count += got
                return buffer[offset - first : min(count, end - first)]
        finally:
            os.close(fd)

    def _buffered(self, offset: int, size_bytes: int) -> bytes:
        fd = os.open(self._path, os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            found = b""
            while len(found) < size_bytes:
                more = os.pread(fd, size_bytes - len(found), offset + len(found))
                if not more:
                    break
                found += more
            return found
        finally:
            os.close(fd)


def difference(found: bytes, wanted: bytes) -> str:
    """Where and how what was read differs from what should have been, for people."""
    if len(found) != len(wanted) and wanted.startswith(found):
        return f"{len(found)} B came, all of them right, where {len(wanted)} B were to come"
    pairs = enumerate(zip(found, wanted, strict=False))
    places = [place for place, (one, other) in pairs if one != other]
    first, last = places[0], places[-1]
    kind = "zeros" if not any(found[first : last + 1]) else found[first : first + 16].hex()
    return (
        f"{len(places)} of {len(wanted)} B are wrong, from {first} to {last} of it ({kind}); "
        f"{len(found)} B came"
    )
