"""Makes raw of other disk formats on the way, with qemu-img.

The raw file has no name from the start, so that it takes no disk space once nobody reads it,
however the import ends.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from cachefs.errors import CachefsError, NotFoundError, UsageError
from cachefs.ingest.source import FileSource, Source, open_source

_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1
_MAX_CHAIN = 32
_NOT_DAMAGED = (0, 3, 63)
"""Exit codes of `qemu-img check`: sound, space that leaked, a format that it cannot check."""
_MAGICS = {
    b"QFI\xfb": "qcow2",
    b"KDMV": "vmdk",
    b"vhdxfile": "vhdx",
    b"<<< ": "vdi",
    b"conectix": "vpc",
}


def format_hint(path: str) -> str | None:
    """Return the disk format that a file seems to have, if it is one that `convert` is for."""
    try:
        with open(path, "rb") as file:
            head = file.read(8)
    except OSError:
        return None
    return next((name for magic, name in _MAGICS.items() if head.startswith(magic)), None)


@contextmanager
def open_converted(path: str, folder: Path | None = None) -> Iterator[Source]:
    """Open a disk image of any format that qemu knows as the raw bytes that a guest would see.

    Args:
        path: The disk image.
        folder: For the raw file, sparse, while it is needed.

    Raises:
        CachefsError: qemu-img failed.
        NotFoundError: the file, or one that it is based on, is not there.
        UsageError: qemu-img is not installed.
    """
    if not Path(path).exists():
        raise NotFoundError(f"there is no file {path}")
    form, size_bytes = _probe(path)
    if form == "raw":
        with open_source(path) as source:
            yield source
        return
    _check_chain(path)
    with _unnamed_file(folder) as raw:
        raw.truncate(size_bytes)
        _run_qemu_img(
            ["convert", "-f", form, "-O", "raw", "-n", "--target-is-zero", "-S", "4k", "-W"],
            [path, f"/proc/self/fd/{raw.fileno()}"],
            (raw.fileno(),),
        )
        yield FileSource(raw.fileno(), path)


def _probe(path: str) -> tuple[str, int]:
    """Return the format of a disk image and the size of the disk."""
    described = _describe(path)
    return str(described["format"]), int(described["virtual-size"])


def _check_chain(path: str) -> None:
    """Check that a disk image and the files that it is based on are there, and whole."""
    for link, form in _chain(path):
        if form != "raw":
            # qemu-img reads what was cut off as zeros, without an error; only `check` finds it.
            _run_qemu_img(["check", "-f", form], [link], allowed=_NOT_DAMAGED)


def _chain(path: str) -> list[tuple[str, str]]:
    """Return a disk image and the files that it is based on, each with its format."""
    chain = []
    link: str | None = path
    while link:
        described = _describe(link)
        chain.append((link, str(described["format"])))
        backing = described.get("full-backing-filename") or described.get("backing-filename")
        if backing and not Path(backing).is_file():
            raise NotFoundError(
                f"{link} is based on {backing}, which is not there: "
                "put it back, or flatten the image where it is"
            )
        if len(chain) > _MAX_CHAIN:
            raise UsageError(f"{path} is based on more than {_MAX_CHAIN} files, or on itself")
        link = backing
    return chain


def _describe(path: str) -> dict[str, Any]:
    described: dict[str, Any] = json.loads(_run_qemu_img(["info", "--output=json"], [path]))
    return described


def _run_qemu_img(
    arguments: Sequence[str],
    files: Sequence[str],
    keep_fds: Sequence[int] = (),
    allowed: Sequence[int] = (0,),
) -> str:
    program = shutil.which("qemu-img")
    if program is None:
        raise UsageError("--convert needs qemu-img: install the package qemu-utils")
    done = subprocess.run(
        # `file:` keeps a name with a colon from being taken for a protocol.
        [program, *arguments, *(f"file:{os.path.abspath(name)}" for name in files)],
        capture_output=True,
        text=True,
        check=False,
        pass_fds=keep_fds,
        preexec_fn=_end_with_parent,
    )
    if done.returncode not in allowed:
        message = done.stderr.strip().partition("\n")[0]
        raise CachefsError(f"qemu-img {arguments[0]} of {files[0]} failed: {message}")
    return done.stdout


def _end_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextmanager
def _unnamed_file(folder: Path | None) -> Iterator[IO[bytes]]:
    place = folder or Path(os.environ.get("TMPDIR") or "/var/tmp")
    if not os.access(place, os.W_OK):
        raise UsageError(
            f"cannot write to {place}: set TMPDIR to a folder with room for the raw image"
        )
    with tempfile.TemporaryFile(dir=place) as file:
        yield file
