"""Building C programs with sanitizers, and running them."""

import functools
import os
import shlex
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
MOUNT_HELPER = HERE.parents[2] / "mount_helper"
WARNINGS = shlex.split(
    "-std=gnu11 -Wall -Wextra -Wshadow -Wstrict-prototypes -Wpointer-arith -Wvla -Wundef"
    " -Wformat=2 -Werror"
)
SANITIZERS = {
    # gcc says that the thread sanitizer knows no fences. It sees more races then, not fewer.
    "thread": ["-fsanitize=thread", "-Wno-tsan"],
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
}
ENVIRONMENT = {
    **os.environ,
    "TSAN_OPTIONS": "halt_on_error=1:exitcode=66",
    "ASAN_OPTIONS": "detect_leaks=1:exitcode=66",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}


@functools.cache
def why_not(sanitizer: str) -> str:
    """Return why the compiler cannot build with a sanitizer, or nothing."""
    command = ["cc", *SANITIZERS[sanitizer], "-x", "c", "-o", "/dev/null", "-"]
    result = subprocess.run(
        command, input="int main(void){return 0;}", capture_output=True, text=True, check=False
    )
    return result.stderr if result.returncode else ""


def build(folder: Path, sanitizer: str, sources: list[Path], *arguments: str) -> Path:
    """Return a program; the test is skipped if this compiler has no such sanitizer."""
    if why_not(sanitizer):
        pytest.skip(f"the compiler has no {sanitizer} sanitizer: {why_not(sanitizer)}")
    program = folder / f"{sources[0].stem}-{sanitizer}"
    flags = ["-O1", "-g", "-pthread", *WARNINGS, *SANITIZERS[sanitizer], *arguments]
    subprocess.run(["cc", *flags, "-o", program, *sources], check=True)
    return program


def run(
    program: Path, *arguments: object, timeout_s: float = 60
) -> subprocess.CompletedProcess[str]:
    command = [str(program), *map(str, arguments)]
    return subprocess.run(
        command, env=ENVIRONMENT, capture_output=True, text=True, timeout=timeout_s, check=False
    )
