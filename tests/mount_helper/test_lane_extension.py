"""The extension module under sanitizers: what module.c and board.c do for Python."""

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.mount_helper.native.build import ENVIRONMENT, HERE, MOUNT_HELPER, build

PROGRAM = HERE / "extension_run.py"


@pytest.mark.parametrize(("sanitizer", "library"), [("address", "asan"), ("thread", "tsan")])
def test_the_module_under_a_sanitizer(tmp_path: Path, sanitizer: str, library: str) -> None:
    include = sysconfig.get_path("include")
    sources = sorted(MOUNT_HELPER.glob("*.c"))
    module = build(tmp_path, sanitizer, sources, "-shared", "-fPIC", "-isystem", include)
    command = ["cc", f"-print-file-name=lib{library}.so"]
    runtime = subprocess.check_output(command, text=True).strip()
    environment = {
        **ENVIRONMENT,
        "LD_PRELOAD": str(Path(runtime).resolve()),
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": str(MOUNT_HELPER.parent),
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter's own; lane_fuzz looks for the lane's
    }
    target = tmp_path / "_lane.so"
    module.rename(target)
    result = subprocess.run(
        [sys.executable, PROGRAM, target],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stdout) == (0, "all is well\n"), result.stderr
