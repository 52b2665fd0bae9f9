"""A mount whose eviction learns, and how to make it train."""

import json
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from cachefs.cli.mount import ask_daemon
from tests.mount.mounts import DEADLINE_S, PAGE_BYTES, Mount, exists
from tests.mount.samples import KIB, noise

CHUNK = 64 * KIB
CHUNKS = 96
DATA = noise(CHUNKS * CHUNK, 7)
OPTIONS = "quota=2MiB,eviction=ml"
"""A third of the image is in L1."""
TRAINER_WAIT_S = 240.0
"""A training has only the time that nobody else wants."""


def shown(mount: Mount) -> dict[str, Any]:
    """Return what `cachefs model show` says of the one class of slots."""
    done = mount.command("model", "show", "--json", mount.mountpoint)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)["classes"][str(CHUNK)]
    return found


def ruler(mount: Mount) -> str:
    """Return who rules, without the start of a process."""
    asked = {"command": "model", "action": "show"}
    told = ask_daemon(mount.run_folder, asked, DEADLINE_S)["classes"][str(CHUNK)]
    return str(told["ruler"])


def read_until(
    mount: Mount, choice: Random, is_enough: Callable[[], object], most: int = 100_000
) -> None:
    """Read here and there, some chunks more often than others, comparing, until it is enough."""
    fd = os.open(mount / "image", os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, PAGE_BYTES) as buffer:  # a page boundary, as O_DIRECT wants
            for number in range(most):
                if number % 50 == 0 and is_enough():
                    return
                at = min(int(choice.expovariate(0.06)), CHUNKS - 1) * CHUNK
                assert os.preadv(fd, [buffer], at) == PAGE_BYTES
                assert buffer[:] == DATA[at : at + PAGE_BYTES]
    finally:
        os.close(fd)
    raise AssertionError(f"it was not enough to read {most} times")


def trainers(daemon_pid: int) -> list[int]:
    """Return the processes that train for a daemon now."""
    try:
        tasks = list(Path(f"/proc/{daemon_pid}/task").iterdir())
        children = " ".join((task / "children").read_text(encoding="ascii") for task in tasks)
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [pid for pid in map(int, children.split()) if exists(pid) and _trains(pid)]


def _trains(pid: int) -> bool:
    try:
        return b"training_process" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


def left_behind(folder: Path) -> list[str]:
    """Return the temporary files below a folder."""
    found = [path for path in folder.rglob("*") if ".tmp" in path.name]
    return [os.path.relpath(path, folder) for path in found]
