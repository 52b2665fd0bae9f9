"""Mounted servers as context managers: each yields the path of the same file through a server.

Several can be mounted at once, so that a bench can measure them in turns.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CACHEFS = ROOT / ".venv/bin/cachefs"
BARE_PYFUSE3 = ROOT / "bench/servers/bare_pyfuse3.py"
LIBFUSE_PREAD = ROOT / "build/libfuse_pread"
MOUNT_WAIT_S = 15.0
STOP_WAIT_S = 15.0
WARM_READ_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class Server:
    """A way to serve a file.

    Attributes:
        name: For people, and unique.
        serve: Takes the file and an empty folder of its own; the file is readable at the path that
            it yields until the context ends.
    """

    name: str
    serve: Callable[[Path, Path], AbstractContextManager[Path]]


def bare_pyfuse3() -> Server:
    """Return the pyfuse3 server that does one pread and nothing else."""
    return Server("bare pyfuse3", _serve_with(sys.executable, str(BARE_PYFUSE3)))


def libfuse(threads: int, clone_fd: bool = False, splice: bool = False) -> Server:
    """Return the C server with this many threads."""
    flags = [name for name, wanted in (("clone_fd", clone_fd), ("splice", splice)) if wanted]
    threads_text = "1 thread" if threads == 1 else f"{threads} threads"
    name = ", ".join([f"C libfuse, {threads_text}", *flags])
    return Server(name, _serve_with(str(LIBFUSE_PREAD), after=(str(threads), *flags)))


def cachefs(mount_options: str = "", chunk_size: str | None = None) -> Server:
    """Return cachefs over a local store, with these mount options."""

    @contextmanager
    def serve(image: Path, folder: Path) -> Iterator[Path]:
        store = folder / "store"
        run_cachefs("init", str(store))
        import_image(store, image, "image", chunk_size)
        with mounted_store(store, folder, mount_options) as mountpoint:
            yield mountpoint / "image"

    return Server(f"cachefs -o {mount_options}" if mount_options else "cachefs", serve)


def import_image(
    store: Path | str, image: Path, name: str, chunk_size: str | None = None
) -> dict[str, Any]:
    """Import `image` into `store` as `name`; returns what `cachefs import --json` says."""
    options = ["--chunk-size", chunk_size] if chunk_size else []
    command = ["import", "--store", str(store), *options, "--json", str(image), name]
    told: dict[str, Any] = json.loads(run_cachefs(*command))
    return told


@contextmanager
def mounted_store(store: Path | str, folder: Path, mount_options: str = "") -> Iterator[Path]:
    """Mount a store; yields the mount point, and unmounts at the end.

    Args:
        store: The store's folder or URL.
        folder: The mount point and the cache folder are made in it, or used again.
        mount_options: As after `-o`.
    """
    mountpoint = folder / "mount"
    mountpoint.mkdir(exist_ok=True)
    options = ["-o", mount_options] if mount_options else []
    places = ["--store", str(store), "--cache-dir", str(folder / "cache")]
    run_cachefs("mount", *places, *options, str(mountpoint))
    try:
        yield mountpoint
    finally:
        run_cachefs("umount", str(mountpoint))


def status(mountpoint: Path) -> dict[str, Any]:
    """Return what `cachefs status --json` says."""
    told: dict[str, Any] = json.loads(run_cachefs("status", "--json", str(mountpoint)))
    return told


def wait_until_idle(mountpoint: Path) -> None:
    """Wait until nothing waits to be written to L2, and all that can be is there."""
    deadline_s = time.monotonic() + STOP_WAIT_S
    calm = 0
    while calm < 3:
        calm = calm + 1 if not status(mountpoint)["daemon"]["metrics"]["l2_queued_bytes"] else 0
        if time.monotonic() > deadline_s:
            raise RuntimeError("the back-fill of L2 does not end")


def run_cachefs(*arguments: str) -> str:
    """Run the command line of cachefs and return what it prints.

    Raises:
        RuntimeError: It failed; the message has the command and what it said.
    """
    done = subprocess.run([CACHEFS, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"`cachefs {' '.join(arguments)}` failed: {done.stderr.strip()}")
    return done.stdout


def warm(path: Path) -> None:
    """Read a file twice past the kernel's page cache for it, so that its server has all at hand."""
    buffer = memoryview(bytearray(WARM_READ_BYTES))
    with path.open("rb", buffering=0) as file:
        for _ in range(2):
            file.seek(0)
            while file.readinto(buffer):
                pass
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _serve_with(
    *before: str, after: Sequence[str] = ()
) -> Callable[[Path, Path], AbstractContextManager[Path]]:
    """Return `serve` for a program that takes FILE and MOUNTPOINT and stays in the foreground."""

    @contextmanager
    def serve(image: Path, folder: Path) -> Iterator[Path]:
        mountpoint = folder / "mount"
        mountpoint.mkdir()
        process = subprocess.Popen([*before, str(image), str(mountpoint), *after])
        try:
            _wait_until((mountpoint / "image").exists, process)
            yield mountpoint / "image"
        finally:
            process.terminate()
            try:
                process.wait(STOP_WAIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                subprocess.run(["fusermount3", "-uz", str(mountpoint)], check=False)

    return serve


def _wait_until(is_ready: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + MOUNT_WAIT_S
    while not is_ready():
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended with {process.returncode}")
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"{process.args!r} did not mount within {MOUNT_WAIT_S:g} s")
        time.sleep(0.02)
