"""Programs timed as a whole: on the wall's clock and in seconds of processor."""

import mmap
import os
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Timed:
    """How long a program and its children took."""

    wall_s: float
    cpu_s: float


def time_program(command: Sequence[object], cores: int | None = None) -> Timed:
    """Run a program, its output thrown away, and time it.

    Args:
        command: The program and its arguments; paths and numbers become text.
        cores: It may use only the first so many; None is all.

    Raises:
        RuntimeError: It failed; the message has what it said.
    """
    pinned = ["taskset", "--cpu-list", f"0-{cores - 1}"] if cores else []
    begin_s = time.perf_counter()
    before = os.times()
    done = subprocess.run(
        [*pinned, *map(str, command)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
    )
    wall_s = time.perf_counter() - begin_s
    after = os.times()
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stderr.decode(errors='replace').strip()}")
    cpu_s = (after.children_user - before.children_user) + (
        after.children_system - before.children_system
    )
    return Timed(wall_s, cpu_s)


def time_read(path: Path, block_bytes: int) -> float:
    """Read a file from its beginning to its end, buffered; returns the seconds it took."""
    buffer = memoryview(bytearray(block_bytes))
    begin_s = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return time.perf_counter() - begin_s


def time_direct_read(path: Path, block_bytes: int) -> float:
    """Read a file from its beginning to its end, past the page cache; returns the seconds."""
    fd, at = os.open(path, os.O_RDONLY | os.O_DIRECT), 0
    try:
        size_bytes = os.fstat(fd).st_size
        with mmap.mmap(-1, block_bytes) as buffer:  # aligned, as O_DIRECT wants it
            begin_s = time.perf_counter()
            while at < size_bytes:
                at += os.preadv(fd, [buffer], at)
            return time.perf_counter() - begin_s
    finally:
        os.close(fd)


@dataclass(frozen=True)
class TimedReads:
    """How many microseconds each read took, and how long all took together."""

    times_us: list[float]
    wall_s: float


def time_direct_reads_at_depth(
    path: Path, offsets: Sequence[int], read_bytes: int, depth: int
) -> TimedReads:
    """Read at each offset, past the page cache, by `depth` threads with one read each.

    They share one open file, as the threads of a virtual machine's disk do. Threads and not libaio:
    with that the reads of a mount without FUSE_ASYNC_DIO are one at a time whatever its server can.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        parts = [offsets[number::depth] for number in range(depth)]
        begin_s = time.perf_counter()
        with ThreadPoolExecutor(depth) as threads:
            times = list(threads.map(lambda part: _time_direct_reads(fd, part, read_bytes), parts))
        wall_s = time.perf_counter() - begin_s
    finally:
        os.close(fd)
    return TimedReads([us for part in times for us in part], wall_s)


def time_direct_reads(path: Path, offsets: Sequence[int], read_bytes: int) -> list[float]:
    """Read at each offset, past the page cache; returns how many microseconds each read took."""
    return time_direct_reads_at_depth(path, offsets, read_bytes, 1).times_us


def _time_direct_reads(fd: int, offsets: Sequence[int], read_bytes: int) -> list[float]:
    times_us = []
    with mmap.mmap(-1, read_bytes) as buffer:  # aligned, as O_DIRECT wants it
        for offset in offsets:
            begin_ns = time.perf_counter_ns()
            os.preadv(fd, [buffer], offset)
            times_us.append((time.perf_counter_ns() - begin_ns) / 1000)
    return times_us
