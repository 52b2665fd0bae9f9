"""A real mount for each test that asks for one: the real supervisor, the tiny daemon."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mount_helper import control, mounting, rundir
from tests.mount.fixtures import short_path
from tests.mount_helper import tiny_daemon

__all__ = ["short_path"]

REPOSITORY = Path(__file__).parents[2]
DEADLINE_S = 60.0


def wait_for(condition: Callable[[], object], what: str, deadline_s: float = DEADLINE_S) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, f"waited {deadline_s:g} s for {what}"
        time.sleep(0.01)


def exists(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


class TinyMount:
    """A supervisor with a tiny daemon, in folders of its own."""

    def __init__(self, folder: Path) -> None:
        self.mountpoint = folder / "mnt"
        self.mountpoint.mkdir(parents=True)
        self.notes = folder / "notes"
        self.run_base = folder / "run"
        self.environment = {
            **os.environ,
            "CACHEFS_RUN_DIR": str(self.run_base),
            "PYTHONPATH": str(REPOSITORY),
        }

    @property
    def folder(self) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("CACHEFS_RUN_DIR", str(self.run_base))
            return rundir.run_folder(str(self.mountpoint))

    def command(self, mode: str, *arguments: str, value: float = 0) -> list[str]:
        daemon = [sys.executable, tiny_daemon.__file__, "--mode", mode, "--value", str(value)]
        daemon += ["--notes", str(self.notes)]
        supervisor = [sys.executable, "-m", "mount_helper.supervisor"]
        supervisor += ["--mountpoint", str(self.mountpoint), "--source", "file:///a,b c"]
        return [*supervisor, *arguments, "--", *daemon]

    def start(
        self, mode: str = "serve", *arguments: str, value: float = 0
    ) -> subprocess.CompletedProcess[str]:
        command = self.command(mode, *arguments, value=value)
        return subprocess.run(
            command,
            check=False,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )

    def started(self, mode: str = "serve", *arguments: str, value: float = 0) -> "TinyMount":
        result = self.start(mode, *arguments, value=value)
        assert (result.returncode, result.stderr) == (0, "")
        return self

    @property
    def data(self) -> Path:
        return self.mountpoint / "data"

    def ask(self, **request: object) -> control.Message:
        return control.ask(self.folder, request)

    def status(self) -> control.Message:
        return self.ask(command="status")

    def part(self, name: str) -> dict[str, object]:
        part = self.status()[name]
        assert isinstance(part, dict)
        return part

    def lane(self, counter: str) -> int:
        count = self.part("lane")[counter]
        assert isinstance(count, int)
        return count

    def pid(self) -> int:
        pid = self.status()["pid"]
        assert isinstance(pid, int)
        return pid

    def daemon_pid(self) -> int:
        """The running daemon; waits for one."""
        wait_for(lambda: self.part("daemon")["state"] == "running", "a running daemon")
        pid = self.part("daemon")["pid"]
        assert isinstance(pid, int)
        return pid

    def signal_daemon(self, number: signal.Signals) -> int:
        pid = self.daemon_pid()
        os.kill(pid, number)
        return pid

    def is_mounted(self) -> bool:
        return mounting.is_mounted(str(self.mountpoint))

    def log(self) -> str:
        path = self.folder / rundir.LOG_FILE
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def starts(self) -> list[str]:
        return [line.split()[1] for line in self.notes.read_text(encoding="ascii").splitlines()]

    def clean_up(self) -> None:
        """Leave no mount and no process, whatever the test did."""
        supervisor_pid = daemon_pid = None
        with contextlib.suppress(OSError):
            supervisor_pid = self.pid()
            daemon_pid = self.part("daemon")["pid"]
        for pid in (daemon_pid,):
            if isinstance(pid, int):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
        if self.is_mounted():
            subprocess.run(["umount", "-l", self.mountpoint], check=False, timeout=DEADLINE_S)
        if isinstance(supervisor_pid, int):
            try:
                wait_for(lambda: not exists(supervisor_pid), "the end of the supervisor", 10)
            finally:
                if exists(supervisor_pid):
                    os.kill(supervisor_pid, signal.SIGKILL)


@pytest.fixture
def tiny_mount(short_path: Path) -> Iterator[TinyMount]:
    mount = TinyMount(short_path)
    try:
        yield mount
    finally:
        mount.clean_up()
