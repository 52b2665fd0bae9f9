"""Chaos for a minute; `make chaos` runs it for as long as wanted (CHAOS_S, CHAOS_SEED)."""

import os
import random
from pathlib import Path

import pytest

from tests.chaos.run import run_chaos
from tests.s3.servers import S3Server

SECONDS = float(os.environ.get("CHAOS_S", "60"))
SEED = int(os.environ.get("CHAOS_SEED") or random.randrange(1 << 31))

pytestmark = pytest.mark.mount


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 500)
def test_whatever_goes_wrong_no_byte_does(s3: S3Server, short_path: Path) -> None:
    try:
        found = run_chaos(s3, short_path, SECONDS, SEED)
    except AssertionError as error:
        raise AssertionError(f"--seconds {SECONDS:g} --seed {SEED}: {error}") from error
    assert "all right" in found
    print(f"--seed {SEED}: {found}")
