"""The board under threads that write and read as fast as they can, under sanitizers."""

import os
from pathlib import Path

import pytest

from tests.mount_helper.native.build import HERE, build, run

SECONDS = float(os.environ.get("STRESS_SECONDS", "2"))
SOURCES = [HERE / "board_stress.c"]


@pytest.mark.parametrize("sanitizer", ["thread", "address"])
def test_no_wrong_byte_and_no_race(tmp_path: Path, sanitizer: str) -> None:
    result = run(build(tmp_path, sanitizer, SOURCES), SECONDS, 1, timeout_s=SECONDS + 60)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("mutation", ["WITHOUT_SECOND_LOOK", "WITHOUT_IMAGE_LOOK"])
def test_the_stress_notices_what_it_is_for(tmp_path: Path, mutation: str) -> None:
    result = run(build(tmp_path, "address", SOURCES, f"-D{mutation}"), 2, 1)
    assert result.returncode == 1
    assert "wrong: bytes" in result.stderr
