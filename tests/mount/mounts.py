"""Real mounts through the real command line, each in folders of its own, and their clean end."""

import contextlib
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mount_helper import control, mounting, rundir

CACHEFS = Path(sys.executable).with_name("cachefs")
COMMAND_WAIT_S = 100.0
DEADLINE_S = 60.0
GAUGES = (
    "waiting_reads",
    "flights",
    "pinned_slots",
    "l2_queued_bytes",
    "l2_open_breakers",
    "ahead_jobs",
)
PAGE_BYTES = 4096


def wait_for(condition: Callable[[], object], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Poll until a condition holds; fail the test at the deadline."""
    end_s = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end_s, f"waited {deadline_s:g} s for {what}"
        time.sleep(0.01)


def exists(pid: int) -> bool:
    """Return whether a process runs (a zombie does not, once the last of its threads has ended)."""
    try:
        told = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    state, threads = told[0], int(told[17])
    return state not in "ZX" or threads > 1


def read_direct(path: Path, offset: int = 0, size_bytes: int | None = None) -> bytes:
    """Read past the kernel's page cache of the mount, so that every byte comes from cachefs now."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        end = os.fstat(fd).st_size if size_bytes is None else offset + size_bytes
        parts = []
        with mmap.mmap(-1, 1 << 20) as buffer:  # a page boundary, as O_DIRECT wants
            while offset < end:
                want = min(len(buffer), -(-(end - offset) // PAGE_BYTES) * PAGE_BYTES)
                with memoryview(buffer)[:want] as view:
                    count = os.preadv(fd, [view], offset)
                    parts.append(bytes(view[: min(count, end - offset)]))
                if not count:
                    break
                offset += count
        return b"".join(parts)
    finally:
        os.close(fd)


class Mount:
    """A store on a mountpoint; `folder` has the mountpoint, the cache and the run folder."""

    def __init__(self, folder: Path, store: str | Path) -> None:
        self.store = str(store)
        self.mountpoint = folder / "mnt"
        self.cache = folder / "cache"
        self.run_base = folder / "run"
        self.mountpoint.mkdir(exist_ok=True)
        self.environment = {**os.environ, "CACHEFS_RUN_DIR": str(self.run_base)}
        self.foreground: subprocess.Popen[str] | None = None
        self.launcher: list[str] = []
        """What comes before each command."""

    def __truediv__(self, name: str) -> Path:
        return self.mountpoint / name

    # ---- commands ----

    def command(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run the real command with this mount's run folder."""
        return subprocess.run(
            [*self.launcher, CACHEFS, *arguments],
            check=False,
            env=self.environment,
            cwd="/",
            capture_output=True,
            text=True,
            timeout=COMMAND_WAIT_S,
        )

    def arguments(self, options: str) -> list[str | Path]:
        return [
            "mount",
            *("--store", self.store),
            *("--cache-dir", self.cache),
            # The machine that tests may have a full disk; most tests do not mind.
            *("-o", ",".join(filter(None, ["free_floor=0", options]))),
            self.mountpoint,
        ]

    def try_start(self, options: str = "") -> subprocess.CompletedProcess[str]:
        return self.command(*self.arguments(options))

    def start(self, options: str = "") -> "Mount":
        done = self.try_start(options)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), self.log()
        return self

    def umount(self, *options: str) -> None:
        done = self.command("umount", *options, self.mountpoint)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), self.log()

    def scrub(self) -> dict[str, int]:
        done = self.command("scrub", "--json", self.mountpoint)
        assert (done.returncode, done.stderr) == (0, ""), self.log()
        found: dict[str, int] = json.loads(done.stdout)
        return found

    def status(self) -> dict[str, Any]:
        """Return what `cachefs status --json` prints."""
        done = self.command("status", "--json", self.mountpoint)
        assert (done.returncode, done.stderr) == (0, ""), self.log()
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    # ---- the same, without the start of a process, for what is asked again and again ----

    @property
    def run_folder(self) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("CACHEFS_RUN_DIR", str(self.run_base))
            return rundir.run_folder(str(self.mountpoint))

    def supervised(self) -> dict[str, Any]:
        """Return what the supervisor says."""
        return dict(control.ask(self.run_folder, {"command": "status"}))

    def ask_daemon(self) -> dict[str, Any]:
        """Return what the daemon says; raises OSError while there is none."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(DEADLINE_S)
            connection.connect(str(self.run_folder / rundir.DAEMON_SOCKET))
            connection.sendall(b'{"command": "status"}\n')
            with connection.makefile("rb") as stream:
                line = stream.readline()
        if not line:
            raise ConnectionError("the daemon closed the connection")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def daemon(self) -> dict[str, Any]:
        """Return what the daemon says, waiting for the next one if there is none now."""
        answers: list[dict[str, Any]] = []

        def ask() -> bool:
            with contextlib.suppress(OSError):
                answers.append(self.ask_daemon())
            return bool(answers)

        wait_for(ask, "a daemon that answers")
        return answers[0]

    def metrics(self) -> dict[str, int]:
        found: dict[str, int] = self.daemon()["metrics"]
        return found

    def daemon_pid(self) -> int:
        """Return the pid of the daemon; waits for one that serves."""
        daemon: dict[str, Any] = {}

        def is_running() -> bool:  # state and pid of one answer: the next may be of another daemon
            daemon.update(self.supervised()["daemon"])
            return bool(daemon["state"] == "running")

        wait_for(is_running, "a running daemon")
        return int(daemon["pid"])

    def kill_daemon(self, number: signal.Signals = signal.SIGKILL) -> int:
        pid = self.daemon_pid()
        os.kill(pid, number)
        return pid

    def kill_daemon_and_wait(self) -> None:
        """Kill the daemon, and wait for the next."""
        old = self.kill_daemon()
        wait_for(lambda: not exists(old), "the end of the daemon")
        wait_for(lambda: self.daemon_pid() != old, "the next daemon")

    def wait_for_commits(self, *names: str) -> None:
        """Wait until the index has all of these images that is in L1: a crash then costs none."""

        def is_committed() -> bool:
            resident: int = self.daemon()["l1"]["resident_bytes"]
            return sum(map(self._committed_bytes, names)) >= resident

        wait_for(is_committed, "the commit")

    def _committed_bytes(self, name: str) -> int:
        """What the slots of an image take, as far as the index on the disk knows."""
        prefix = "user.cachefs"
        resident = int(os.getxattr(self / name, f"{prefix}.resident_bytes"))
        slot_bytes = int(os.getxattr(self / name, f"{prefix}.chunk_size"))
        return -(-resident // slot_bytes) * slot_bytes  # the last chunk may not fill its slot

    def log(self) -> str:
        path = self.run_folder / rundir.LOG_FILE
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def is_mounted(self) -> bool:
        return mounting.is_mounted(str(self.mountpoint))

    def check_slots(self) -> None:
        """Every slot of L1 is free or occupied once nothing is under way: none has leaked."""
        found: dict[str, int] = {}

        def is_whole() -> bool:
            found.update(self.daemon()["l1"])
            return found["slots"] == found["free_slots"] + found["resident_chunks"]

        try:
            wait_for(is_whole, "slots that are free or occupied")
        except AssertionError as error:
            raise AssertionError(f"{error}: {found}") from None

    # ---- the end ----

    def check_idle(self) -> None:
        """Nothing waits, flies or is pinned once all reads are answered."""
        gauges: dict[str, int] = {}

        def is_idle() -> bool:
            metrics = self.metrics()
            gauges.update({name: metrics[name] for name in GAUGES})
            return not any(gauges.values())

        try:
            wait_for(is_idle, "idle gauges")
        except AssertionError as error:
            raise AssertionError(f"{error}: {gauges}") from None

    def end(self, *, is_checked: bool = True) -> None:
        """Unmount, whatever the test did, and leave no process."""
        pids = self.pids()
        try:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
            if is_checked and pids and self.is_mounted():
                self.check_idle()
                self.umount()
        finally:
            if self.is_mounted():
                subprocess.run(["umount", "-l", self.mountpoint], check=False, timeout=DEADLINE_S)
            for pid in {*pids, *self.pids()}:
                _end_process(pid)
            if self.foreground:
                self.foreground.wait(DEADLINE_S)
                for stream in (self.foreground.stdout, self.foreground.stderr):
                    if stream:
                        stream.close()

    def pids(self) -> list[int]:
        """The supervisor, its daemon and its fetchers, as far as they can be asked."""
        pids: list[int | None] = []
        with contextlib.suppress(OSError):
            status = self.supervised()
            pids += [status["pid"], status["daemon"]["pid"]]
            pids += self.ask_daemon()["fetchers"]["pids"]
        return [pid for pid in pids if pid]


def _end_process(pid: int) -> None:
    try:
        wait_for(lambda: not exists(pid), "the end of a process")
    except AssertionError:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        raise


class Mounts:
    """Makes mounts, and ends them all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: list[Mount] = []

    def __call__(self, store: str | Path) -> Mount:
        """Return a mount of `store` that is not started yet."""
        folder = self._folder / str(len(self._made))
        folder.mkdir()
        mount = Mount(folder, store)
        self._made.append(mount)
        return mount

    def end(self) -> None:
        with contextlib.ExitStack() as stack:
            for mount in self._made:
                stack.callback(mount.end)


@contextlib.contextmanager
def made_mounts(folder: Path) -> Iterator[Mounts]:
    """Yield a maker of mounts below `folder`; all end with the context, however it ends."""
    mounts = Mounts(folder)
    try:
        yield mounts
    finally:
        mounts.end()


# ---- the lane ----


def lane(mount: Mount, counter: str) -> int:
    """Return what the lane has counted of reads."""
    count: int = mount.supervised()["lane"]["reads"][counter]
    return count


def make_resident(mount: Mount, path: Path, data: bytes) -> None:
    """Read until the lane answers all of it: it may be told of the first chunks a little late."""

    def reads_by_hits_alone() -> bool:
        before = lane(mount, "passed_reads")
        assert read_direct(path) == data
        return lane(mount, "passed_reads") == before

    wait_for(reads_by_hits_alone, f"{path.name} to be all hits")


def forget_pages(folder: Path) -> None:
    """Leave nothing of L1's segments in the page cache."""
    for path in folder.iterdir():
        fd = os.open(path, os.O_RDWR)
        os.fdatasync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
