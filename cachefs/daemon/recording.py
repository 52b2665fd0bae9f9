"""Recordings of accesses: what guests read of one image, into a file for `cachefs trace`.

One at a time, for a while that is named when it begins, and of so many accesses; a command that
began one and was killed leaves a file all the same. A daemon that ends takes the recording with it.

Concurrency: event loop; the file is written in a thread.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import trio

from cachefs.errors import CacheError, ConflictError, NotFoundError, UsageError
from cachefs.tiers.accesses import Accesses
from cachefs.vfs import Vfs

logger = logging.getLogger(__name__)

MOST_ACCESSES = 2_000_000
"""Some 60 MB of memory."""
LONGEST_S = 24 * 3600.0

_ROW = np.dtype(
    [
        ("time_us", "<f8"),
        ("offset_bytes", "<i8"),
        ("length_bytes", "<i4"),
        ("reader", "<u4"),
        ("is_hit", "i1"),
    ]
)


class Recording:
    """At most one recording."""

    def __init__(self, accesses: Accesses, vfs: Vfs, most_accesses: int = MOST_ACCESSES) -> None:
        self._accesses = accesses
        self._vfs = vfs
        self._most = most_accesses
        self._inodes: npt.NDArray[np.uint64] = np.zeros(0, np.uint64)
        self._parts: list[npt.NDArray[np.void]] = []
        self._count = 0
        self._path: Path | None = None
        self._ends_s = 0.0
        self._news = trio.Event()

    async def run(self) -> None:
        """End recordings whose time is over, until cancelled."""
        while True:
            if not self._is_on:
                await self._news.wait()
                self._news = trio.Event()
                continue
            with trio.move_on_at(self._ends_s):
                await self._news.wait()
            self._news = trio.Event()
            if trio.current_time() >= self._ends_s and self._is_on:
                try:
                    await self._end()
                except CacheError as error:
                    logger.warning("%s", error)

    @property
    def _is_on(self) -> bool:
        return self._path is not None

    async def command(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer `cachefs trace record`.

        Raises:
            CachefsError: there is no such image, one is being recorded, or the disk takes nothing.
        """
        action = request.get("action")
        if action == "start":
            self._begin(str(request["name"]), Path(str(request["path"])), float(request["seconds"]))
            return {"accesses": 0}
        if action == "stop":
            if self._path is None:
                return {"accesses": self._count}  # its time was over
            return {"accesses": await self._end()}
        raise UsageError(f"cannot '{action}' a recording")

    def _begin(self, name: str, path: Path, seconds: float) -> None:
        if self._path is not None:
            raise ConflictError(f"{self._path} is being recorded: one at a time")
        if not 0 < seconds <= LONGEST_S:
            raise UsageError(f"a recording takes up to {LONGEST_S:.0f} s")
        files = self._vfs.tree.files()
        inodes = [inode for inode, (known, _) in files.items() if known == name]
        if not inodes:
            raise NotFoundError(f"no image '{name}' on this mount")
        if not path.parent.is_dir():
            raise UsageError(f"there is no folder {path.parent}")
        self._accesses.digest()  # what was read before is no part of it
        self._inodes = np.array(inodes, np.uint64)
        self._parts, self._count, self._path = [], 0, path
        self._ends_s = trio.current_time() + seconds
        self._accesses.observers.append(self._observe)
        self._news.set()

    def _observe(self, records: npt.NDArray[np.void]) -> None:
        mine = records[np.isin(records["inode"], self._inodes)][: self._most - self._count]
        if not len(mine):
            return
        rows = np.zeros(len(mine), _ROW)
        rows["time_us"] = mine["at_ns"] / 1e3
        rows["offset_bytes"], rows["length_bytes"] = mine["offset"], mine["length"]
        rows["reader"], rows["is_hit"] = mine["pid"], mine["by_lane"]
        self._parts.append(rows)
        self._count += len(rows)

    async def _end(self) -> int:
        """Write the file; returns how many accesses it has."""
        path = self._path
        assert path is not None
        self._accesses.digest()
        self._accesses.observers.remove(self._observe)
        self._path = None
        self._news.set()
        rows = np.concatenate([np.zeros(0, _ROW), *self._parts])
        self._parts = []
        rows = rows[np.argsort(rows["time_us"], kind="stable")]
        await trio.to_thread.run_sync(write_recording, path, rows)
        return len(rows)


def write_recording(path: Path, rows: npt.NDArray[np.void]) -> None:
    """Write a recording as npz, complete or not at all. Blocks.

    Raises:
        CacheError: the disk does not take it.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez_compressed(
                file,
                time_us=rows["time_us"],
                offset_bytes=rows["offset_bytes"],
                length_bytes=rows["length_bytes"],
                reader=rows["reader"],
                is_hit=rows["is_hit"],
            )
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise CacheError(f"cannot write the recording {path}: {error.strerror}") from error
