"""Keeps one daemon running: start, deadline of the start, backoff, stop.

It does not know the lane nor the mount; it tells its owner of a daemon that is ready, or has ended.
"""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mount_helper.backoff import Backoff
from mount_helper.daemon_process import DaemonProcess
from mount_helper.event_loop import EventLoop
from mount_helper.settings import Settings

STOP_TIMEOUT_S = 20.0
LOST_SOCKET_GRACE_S = 2.0  # from the end of a daemon's socket to the end of its process
DEADLINE, RESTART, LOST_SOCKET = "daemon deadline", "daemon restart", "daemon lost its socket"


@dataclass(frozen=True)
class DaemonEnd:
    """How a daemon ended.

    Attributes:
        code: Its exit code; None if a signal ended it.
        signal: That signal.
        message: What it said, or the supervisor knows about it.
        failure_exit_code: What it asks the mount command to return.
        at: Seconds since the epoch.
    """

    code: int | None
    signal: int | None
    message: str
    failure_exit_code: int | None
    at: float

    def describe(self) -> str:
        """Return one line."""
        reason = f"exit code {self.code}" if self.signal is None else f"signal {self.signal}"
        return f"{reason}: {self.message}" if self.message else reason


class DaemonKeeper:
    """The daemon of a mount, and its successors.

    Attributes:
        daemon: The process; None while a restart waits.
        restarts: How many daemons were started after the first.
        last_end: How the last one ended.
    """

    def __init__(
        self,
        loop: EventLoop,
        settings: Settings,
        folder: Path,
        board_fd: int,
        on_segment: Callable[[int, int], None],
        on_ready: Callable[[DaemonProcess], None],
        on_end: Callable[[DaemonEnd, bool], None],
    ) -> None:
        self._loop = loop
        self._settings = settings
        self._folder = folder
        self._board_fd = board_fd
        self._on_segment = on_segment
        self._on_ready = on_ready
        self._on_end = on_end
        self._backoff = Backoff()
        self._last_lived_s = 0.0
        self.daemon: DaemonProcess | None = None
        self.restarts = 0
        self.last_end: DaemonEnd | None = None
        self._has_hung = False

    def start(self, *, is_restart: bool = False) -> None:
        """Start a daemon; `on_ready` or `on_end` follows.

        After one that hung, or could not read what it had mapped, the next looks at its disk first.
        """
        end = self.last_end
        daemon = DaemonProcess(
            self._settings.daemon_argv,
            self._folder,
            self._board_fd,
            is_restart=is_restart,
            is_wary=self._has_hung or (end is not None and end.signal == signal.SIGBUS),
        )
        self._has_hung = False
        self.daemon = daemon
        self._loop.watch(daemon.control.fileno(), self._on_message)
        self._loop.watch(daemon.pidfd, self._on_exit)
        self._loop.set_timer(DEADLINE, self._settings.start_timeout_s, self._on_start_timeout)

    def schedule_restart(self, *, was_planned: bool) -> float:
        """Start the next daemon after the backoff; return that wait in seconds."""
        wait_s = 0.0 if was_planned else self._backoff.next_wait_s(self._last_lived_s)
        self._loop.set_timer(RESTART, wait_s, self._restart)
        return wait_s

    def stop(self) -> None:
        """Ask the daemon to end, and kill it if it takes too long. Without a daemon: start none."""
        self._loop.cancel_timer(RESTART)
        if self.daemon and self.daemon.state != "stopping":
            self.daemon.stop()
            self._loop.set_timer(DEADLINE, STOP_TIMEOUT_S, self.daemon.kill)

    def restart(self) -> None:
        """Stop the daemon and start the next one; at once, if that one was waiting already."""
        if self.daemon:
            self.stop()
        else:
            self._loop.set_timer(RESTART, 0.0, self._restart)

    def kill(self) -> None:
        """End the daemon now, and wait for it."""
        if self.daemon:
            self.daemon.kill()
            self._forget(self.daemon)

    def suspect_lost_socket(self, is_attached: Callable[[], bool]) -> None:
        """The lane has seen the end of a daemon's socket: it has died, or must."""
        daemon = self.daemon

        def kill_unless_attached() -> None:
            if daemon and daemon is self.daemon and not is_attached():
                daemon.message = "it closed its FUSE socket"
                daemon.kill()

        if daemon and daemon.state == "running":
            self._loop.set_timer(LOST_SOCKET, LOST_SOCKET_GRACE_S, kill_unless_attached)

    def kill_hung(self, silent_s: float) -> None:
        """The daemon runs, but its event loop does not: end it, and another is started."""
        if self.daemon and self.daemon.state == "running":
            self._has_hung = True
            self.daemon.message = f"it hung: it gave no sign of life for {silent_s:g} s"
            self.daemon.kill()

    def _restart(self) -> None:
        self.restarts += 1
        self.start(is_restart=True)

    def _on_start_timeout(self) -> None:
        if self.daemon:
            limit_s = self._settings.start_timeout_s
            self.daemon.message = f"the daemon was not ready within {limit_s:g} s"
            self.daemon.kill()

    def _on_message(self) -> None:
        daemon = self.daemon
        if not daemon:
            return
        message = daemon.receive()
        if message is None:
            self._loop.unwatch(daemon.control.fileno())
            return
        self._take_segment(message)
        if message.get("event") == "failed":
            _note_failure(daemon, message)
        elif message.get("event") == "ready" and daemon.state == "starting":
            daemon.state = "running"
            daemon.takes_reads = message.get("reads") is True
            daemon.ready_at = time.monotonic()
            self._loop.cancel_timer(DEADLINE)
            self._on_ready(daemon)

    def _on_exit(self) -> None:
        daemon = self.daemon
        if not daemon:
            return
        while message := daemon.receive():  # what it said just before
            self._take_segment(message)
            if message.get("event") == "failed":
                _note_failure(daemon, message)
        code = self._forget(daemon)
        self.last_end = DaemonEnd(
            code=code if code >= 0 else None,
            signal=-code if code < 0 else None,
            message=daemon.message,
            failure_exit_code=daemon.failure_exit_code,
            at=time.time(),
        )
        self._on_end(self.last_end, daemon.state == "stopping")

    def _take_segment(self, message: dict[str, object]) -> None:
        fd, number = message.pop("fd", -1), message.get("class")
        if isinstance(fd, int) and fd >= 0:
            try:
                if message.get("event") == "segment" and isinstance(number, int):
                    self._on_segment(number, fd)
            finally:
                os.close(fd)

    def _forget(self, daemon: DaemonProcess) -> int:
        self._loop.unwatch(daemon.control.fileno())
        self._loop.unwatch(daemon.pidfd)
        self._loop.cancel_timer(DEADLINE, LOST_SOCKET)
        self.daemon = None
        self._last_lived_s = daemon.lived_s()
        return daemon.reap()


def _note_failure(daemon: DaemonProcess, message: dict[str, object]) -> None:
    daemon.message = str(message.get("message", "the daemon failed"))
    code = message.get("exit_code")
    daemon.failure_exit_code = code if isinstance(code, int) and 0 < code < 256 else None
