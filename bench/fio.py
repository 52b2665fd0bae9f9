"""fio as a measuring device: what to read, and what came out."""

import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Workload:
    """One way to read a file.

    Attributes:
        name: For people, and unique.
        pattern: fio's `rw`: `read` or `randread`.
        block_bytes: The size of each read.
        depth: How many reads are in flight.
        direct: O_DIRECT, so that the file system's server sees every read.
        engine: fio's `ioengine`.
    """

    name: str
    pattern: str
    block_bytes: int
    depth: int
    direct: bool = True
    engine: str = "libaio"


@dataclass(frozen=True)
class Result:
    """What fio measured: reads and bytes a second, and completion latencies in microseconds."""

    iops: float
    bytes_per_s: float
    p50_us: float
    p99_us: float
    p999_us: float
    longest_us: float


RANDOM_4K_QD1 = Workload("4 KiB random QD1", "randread", 4096, 1)
RANDOM_4K_QD32 = Workload("4 KiB random QD32", "randread", 4096, 32)
RANDOM_128K_QD16 = Workload("128 KiB random QD16", "randread", 128 * 1024, 16)
SEQUENTIAL_1M = Workload("1 MiB sequential", "read", 1024 * 1024, 1)
HOT_WORKLOADS = (RANDOM_4K_QD1, RANDOM_4K_QD32, RANDOM_128K_QD16, SEQUENTIAL_1M)


def measure(
    path: Path, workload: Workload, runtime_s: float, ramp_s: float = 0.5, *options: str
) -> Result:
    """Read `path` as `workload` says and return what fio measured.

    Args:
        path: The file to read, from the whole of it.
        workload: How to read it.
        runtime_s: How long to measure.
        ramp_s: How long to read before that.
        options: More options of fio's.

    Raises:
        RuntimeError: fio is missing or failed; the message has what it said.
    """
    output = run(
        f"--filename={path}",
        "--name=measure",
        "--readonly",
        "--allow_file_create=0",
        "--invalidate=0",
        "--norandommap",
        "--random_generator=tausworthe64",
        "--randrepeat=0",
        "--time_based",
        f"--runtime={round(runtime_s * 1000)}ms",
        f"--ramp_time={round(ramp_s * 1000)}ms",
        f"--rw={workload.pattern}",
        f"--bs={workload.block_bytes}",
        f"--iodepth={workload.depth}",
        f"--direct={int(workload.direct)}",
        f"--ioengine={workload.engine}",
        *options,
    )
    read = output["jobs"][0]["read"]
    latency = read["clat_ns"]
    return Result(
        iops=read["iops"],
        bytes_per_s=read["bw_bytes"],
        p50_us=latency["percentile"]["50.000000"] / 1000,
        p99_us=latency["percentile"]["99.000000"] / 1000,
        p999_us=latency["percentile"]["99.900000"] / 1000,
        longest_us=latency["max"] / 1000,
    )


def run(*options: str) -> dict[str, Any]:
    """Run fio with `options` and return its JSON.

    Raises:
        RuntimeError: fio is missing or failed; the message has what it said.
    """
    if not shutil.which("fio"):
        raise RuntimeError("fio is not installed: run `make setup`")
    command = ["fio", "--output-format=json", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"fio failed: {done.stderr.strip() or done.stdout.strip()}")
    # fio puts its warnings before the JSON.
    parsed: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{\n") :])
    return parsed


def median_result(results: Sequence[Result]) -> Result:
    """Return the medians of rounds, field by field; the longest latency is the longest of all."""
    return Result(
        iops=median(result.iops for result in results),
        bytes_per_s=median(result.bytes_per_s for result in results),
        p50_us=median(result.p50_us for result in results),
        p99_us=median(result.p99_us for result in results),
        p999_us=median(result.p999_us for result in results),
        longest_us=max(result.longest_us for result in results),
    )
