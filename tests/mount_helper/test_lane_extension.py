"""The extension module under the address sanitizer: what module.c and board.c do for Python."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from tests.mount_helper.native.build import HERE, MOUNT_HELPER, build

PROGRAM = HERE / "extension_run.py"


def test_the_module_under_the_address_sanitizer(tmp_path: Path) -> None:
    include = sysconfig.get_path("include")
    sources = sorted(MOUNT_HELPER.glob("*.c"))
    module = build(tmp_path, "address", sources, "-shared", "-fPIC", "-isystem", include)
    library = subprocess.check_output(["cc", "-print-file-name=libasan.so"], text=True).strip()
    environment = {
        **os.environ,
        "LD_PRELOAD": str(Path(library).resolve()),
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
