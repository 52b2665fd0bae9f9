"""The lane under random requests, lies, deaths and an L1 that changes, under sanitizers."""

import os
from pathlib import Path

import pytest

from tests.mount_helper.native.build import HERE, MOUNT_HELPER, build, run

SECONDS = float(os.environ.get("FUZZ_SECONDS", "4"))
SEEDS = [int(seed) for seed in os.environ.get("FUZZ_SEEDS", "1").split(",")]
LANE = ("lane.c", "crew.c", "hits.c", "disk.c", "kept.c")
SOURCES = [HERE / "lane_fuzz.c", *(MOUNT_HELPER / name for name in LANE)]


@pytest.mark.slow
@pytest.mark.timeout(SECONDS * len(SEEDS) + 300)
@pytest.mark.parametrize("mode", ["", "threads"])
@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_every_request_is_answered_rightly_and_nothing_is_left(
    tmp_path: Path, sanitizer: str, mode: str
) -> None:
    """Also where the kernel refuses asynchronous reads (`threads`)."""
    program = build(tmp_path, sanitizer, SOURCES, "-Dsyscall=played_syscall")
    for seed in SEEDS:
        result = run(program, SECONDS, seed, *mode.split(), timeout_s=SECONDS + 60)
        assert result.returncode == 0, f"seed {seed}\n{result.stdout}{result.stderr[-20000:]}"
