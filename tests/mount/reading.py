"""A process that reads from a mount, and can be killed while it does."""

import hashlib
import subprocess
import sys
import time
from pathlib import Path

from tests.mount.mounts import exists, wait_for

_SCRIPT = Path(__file__).with_name("read_once.py")


class Reading:
    """Reads `size_bytes` from `offset`, past the page cache or through it."""

    def __init__(self, path: Path, offset: int, size_bytes: int, *, buffered: bool = False) -> None:
        self.begun_s = time.monotonic()
        self.process = subprocess.Popen(
            [
                sys.executable,
                _SCRIPT,
                path,
                str(offset),
                str(size_bytes),
                "buffered" if buffered else "direct",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
        )

    def is_under_way(self) -> bool:
        return self.process.poll() is None

    def digest(self, wait_s: float = 60) -> str:
        """Wait for its end; returns the SHA-256 of what it read, or the name of its error."""
        output, errors = self.process.communicate(timeout=wait_s)
        assert self.process.returncode == 0, errors
        return output.strip()

    def kill(self) -> None:
        """Kill it, and wait until it is really gone: nothing holds it in the kernel."""
        self.process.kill()
        wait_for(lambda: not exists(self.process.pid), "the end of a reader that was killed")
        self.process.communicate()

    def end(self) -> None:
        """Leave no process, whatever happened."""
        if self.is_under_way():
            self.process.kill()
        self.process.communicate()


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
