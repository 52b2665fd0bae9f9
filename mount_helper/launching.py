"""Into the background: the launching process waits until the mount answers, or has failed."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from mount_helper.errors import MountError

LONGEST_LOG_BYTES = 10 << 20


def log(message: str) -> None:
    """Write a line to stderr: the log file, or the terminal of a mount in the foreground."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    line = f"{stamp} supervisor[{os.getpid()}]: {message}\n"
    try:
        os.write(2, line.encode(errors="replace"))
    except OSError:
        pass  # a full disk or a closed terminal must not end the mount


def open_log(path: Path) -> int:
    """Open a log file to append to; one that has grown large becomes `<path>.1` first.

    Raises:
        MountError: It cannot be opened.
    """
    try:
        if path.exists() and path.stat().st_size > LONGEST_LOG_BYTES:
            path.replace(f"{path}.1")
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise MountError(f"cannot open the log file {path}: {error.strerror}") from error


class Launcher:
    """Tells the process that the user started how the start went; nobody in the foreground."""

    def __init__(self, result_fd: int | None) -> None:
        self._result_fd = result_fd

    def mounted(self) -> None:
        """The mount answers: the launching process returns 0."""
        self._tell("", 0)

    def failed(self, error: MountError) -> None:
        """The launching process prints the message and returns the exit code."""
        self._tell(error.message, error.exit_code)

    def _tell(self, message: str, exit_code: int) -> None:
        if self._result_fd is not None:
            os.write(self._result_fd, json.dumps([message, exit_code]).encode())
            os.close(self._result_fd)
            self._result_fd = None


def run_in_background(log_fd: int, serve: Callable[[Launcher], int]) -> int:
    """Run a function in a session of its own, its output in the log.

    Returns:
        The exit code of the launching process, once the mount answers or has failed.
    """
    read_fd, write_fd = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os.close(read_fd)
        code = 1
        try:
            os.setsid()
            os.chdir("/")
            null_fd = os.open(os.devnull, os.O_RDWR)
            for fd, source_fd in ((0, null_fd), (1, log_fd), (2, log_fd)):
                os.dup2(source_fd, fd)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            code = serve(Launcher(write_fd))
        finally:
            os._exit(code)
    os.close(write_fd)
    with os.fdopen(read_fd, "rb") as stream:
        result = stream.read()
    if not result:
        _, status = os.waitpid(pid, 0)
        raise MountError(
            f"the supervisor ended with {os.waitstatus_to_exitcode(status)}; see its log"
        )
    message, exit_code = json.loads(result)
    if exit_code:
        raise MountError(message, exit_code)
    return 0
