"""The process of a Reading: `read_once.py PATH OFFSET SIZE direct|buffered`. Needs nothing of ours.

Prints the SHA-256 of what it read, or the name of the error.
"""

import hashlib
import mmap
import os
import sys

_READ_BYTES = 64 * 1024


def _read(path: str, offset: int, size_bytes: int, how: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | (os.O_DIRECT if how == "direct" else 0))
    parts = []
    with mmap.mmap(-1, _READ_BYTES) as buffer:
        while size_bytes:
            with memoryview(buffer)[: min(_READ_BYTES, size_bytes)] as view:
                count = os.preadv(fd, [view], offset)
                parts.append(bytes(view[:count]))
            if not count:
                break
            offset += count
            size_bytes -= count
    return b"".join(parts)


def _main() -> None:
    path, offset, size_bytes, how = sys.argv[1:]
    try:
        sys.stdout.write(hashlib.sha256(_read(path, int(offset), int(size_bytes), how)).hexdigest())
    except OSError as error:
        sys.stdout.write(os.strerror(error.errno or 0))


if __name__ == "__main__":
    _main()
