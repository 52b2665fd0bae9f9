"""fio reads at random, in every way that hypervisors read, and checks each block."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.e2e.conftest import Mounted

pytestmark = [pytest.mark.e2e, pytest.mark.mount]


def verify(path: Path, *options: str) -> int:
    """Read and check blocks of `path`; returns how many were read."""
    command = ["fio", "--output-format=json", "--name=verify", f"--filename={path}", "--readonly"]
    command += ["--verify=crc32c", "--verify_fatal=1", "--verify_state_load=0", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    jobs = json.loads(done.stdout[done.stdout.index("{\n") :])["jobs"]
    assert [job["error"] for job in jobs] == [0] * len(jobs)
    return sum(int(job["read"]["total_ios"]) for job in jobs)


@pytest.mark.parametrize("engine", ["libaio", "io_uring"])
@pytest.mark.parametrize(("block", "depth"), [("4k", 32), ("128k", 16), ("1m", 4)])
def test_direct_random_reads_are_right(
    mounted: Mounted, engine: str, block: str, depth: int
) -> None:
    reads = verify(
        mounted["pattern"],
        f"--ioengine={engine}",
        "--direct=1",
        "--rw=randread",
        f"--bs={block}",
        "--verify_interval=4k",
        f"--iodepth={depth}",
        "--io_size=32m",
    )

    assert reads >= 32


@pytest.mark.parametrize("engine", ["psync", "mmap"])
def test_buffered_random_reads_are_right(mounted: Mounted, engine: str) -> None:
    assert verify(mounted["pattern"], f"--ioengine={engine}", "--rw=randread", "--bs=4k")


def test_64_readers_at_once_are_right(mounted: Mounted) -> None:
    reads = verify(
        mounted["pattern"],
        "--ioengine=psync",
        "--direct=1",
        "--rw=randread",
        "--bs=16k",
        "--verify_interval=4k",
        "--numjobs=64",
        "--thread",
        "--io_size=2m",
    )

    assert reads == 64 * 2 * 64


def test_fio_would_see_a_wrong_block(pattern_image: Path, tmp_path: Path) -> None:
    """The check itself: one flipped bit in a copy is found."""
    damaged = tmp_path / "damaged.img"
    content = bytearray(pattern_image.read_bytes())
    content[5 * 4096 + 1000] ^= 1
    damaged.write_bytes(content)

    with pytest.raises(AssertionError, match="verify"):
        verify(damaged, "--ioengine=psync", "--rw=randread", "--bs=4k")
