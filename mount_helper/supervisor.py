"""The supervisor: mounts, holds the lane, starts daemons one after the other, and ends all in order.

    python -m mount_helper.supervisor --mountpoint M --source URL ... -- DAEMON_ARGV...

The order of a start: check the mountpoint; start the daemon; when it is ready, mount, and give it to the
lane; when INIT is answered and a stat of the root works, tell the launcher. A failure on the way leaves
nothing mounted.

The end: the kernel has unmounted (umount(8), fusermount3 -u, the `unmount` command), then the daemon is
stopped, in 20 s at most. SIGTERM and SIGINT unmount. If the mount is in use then, it goes on to serve:
guests would lose their disks. It tries again every second, so it ends with the last user; a second
signal takes the mount out of the tree (lazy), and open files are served until they are closed.

Concurrency: one thread, one selector. The lane's threads tell it of events through an eventfd. Nothing
here touches the mount: a look at it could hang (the check at the start is a process of its own).
"""

import fcntl
import json
import os
import selectors
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from mount_helper import __version__, _lane, control, mounting, rundir
from mount_helper.backoff import Backoff
from mount_helper.daemon_process import DaemonProcess, socket_holds_large_messages
from mount_helper.errors import MountError
from mount_helper.launching import Launcher, log, open_log, run_in_background
from mount_helper.settings import LARGEST_READ_BYTES, Settings, parse

STOP_TIMEOUT_S = 20.0
UNMOUNT_RETRY_S = 1.0
LOST_SOCKET_GRACE_S = 2.0  # from the end of a daemon's socket to the end of its process
SMALL_READ_BYTES = 131072  # what a socket of the default size can carry with its header
START_FAILED_EXIT_CODE = 1


class Supervisor:
    """One mount, from its start to its end."""

    def __init__(self, settings: Settings, folder: Path, launcher: Launcher) -> None:
        self._settings = settings
        self._folder = folder
        self._launcher = launcher
        self._selector = selectors.DefaultSelector()
        self._timers: dict[str, tuple[float, Callable[[], None]]] = {}
        self._backoff = Backoff()
        self._daemon: DaemonProcess | None = None
        self._lane: _lane.Lane | None = None
        self._probe_pidfd: int | None = None
        self._phase = "starting"
        self._failure: MountError | None = None
        self._restarts = 0
        self._last_exit: control.Message | None = None
        self._stop_signals = 0
        self._started_at = time.monotonic()
        large = os.geteuid() == 0 and socket_holds_large_messages()
        limit = LARGEST_READ_BYTES if large else SMALL_READ_BYTES
        self._max_read = min(settings.max_read or limit, limit)

    # ---- the loop ----

    def run(self) -> int:
        """Serve until the end of the mount; return the exit code."""
        server = control.ControlServer(self._folder, self._selector, self._answer)
        self._watch_signals()
        try:
            self._start_daemon()
            while self._phase != "ended":
                for key, _ in self._selector.select(self._next_timeout_s()):
                    key.data()
                self._run_timers()
        except MountError as error:
            self._failure = self._failure or error
        finally:
            self._clean_up(server)
        if self._failure:
            log(self._failure.message)
            self._launcher.failed(self._failure)
            return self._failure.exit_code
        return 0

    def _watch_signals(self) -> None:
        read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)

        def on_signal() -> None:
            if {signal.SIGTERM, signal.SIGINT} & set(os.read(read_fd, 64)):
                self._on_stop_signal()

        self._selector.register(read_fd, selectors.EVENT_READ, on_signal)

    def _set_timer(self, name: str, wait_s: float, action: Callable[[], None]) -> None:
        self._timers[name] = (time.monotonic() + wait_s, action)

    def _next_timeout_s(self) -> float | None:
        if not self._timers:
            return None
        return max(0.0, min(when for when, _ in self._timers.values()) - time.monotonic())

    def _run_timers(self) -> None:
        now = time.monotonic()
        for name, (when, action) in list(self._timers.items()):
            if when <= now and self._timers.pop(name, None):
                action()

    def _enter(self, phase: str) -> None:
        self._phase = phase
        state = {key: value for key, value in self._status().items() if key != "lane"}
        temporary = self._folder / f"{rundir.STATE_FILE}.new"
        try:
            temporary.write_text(json.dumps(state) + "\n", encoding="utf-8")
            temporary.replace(self._folder / rundir.STATE_FILE)
        except OSError as error:
            log(f"cannot write {rundir.STATE_FILE}: {error.strerror}")

    # ---- the daemon ----

    def _start_daemon(self) -> None:
        daemon = DaemonProcess(
            self._settings.daemon_argv, self._folder, is_restart=self._lane is not None
        )
        self._daemon = daemon
        self._selector.register(daemon.control, selectors.EVENT_READ, self._on_daemon_message)
        self._selector.register(daemon.pidfd, selectors.EVENT_READ, self._on_daemon_exit)
        self._set_timer("daemon", self._settings.start_timeout_s, self._on_start_timeout)
        self._enter(self._phase)

    def _on_daemon_message(self) -> None:
        daemon = self._daemon
        if not daemon:
            return
        message = daemon.receive()
        if message is None:
            self._selector.unregister(daemon.control)
        elif message.get("event") == "failed":
            daemon.message = str(message.get("message", "the daemon failed"))
            code = message.get("exit_code")
            daemon.failure_exit_code = code if isinstance(code, int) else None
        elif message.get("event") == "ready" and daemon.state == "starting":
            daemon.state = "running"
            daemon.ready_at = time.monotonic()
            self._timers.pop("daemon", None)
            self._attach(daemon)

    def _attach(self, daemon: DaemonProcess) -> None:
        if not self._lane:
            self._mount()
        assert self._lane
        self._lane.attach(daemon.fuse_end.detach())
        self._enter(self._phase)

    def _on_start_timeout(self) -> None:
        if self._daemon:
            limit = self._settings.start_timeout_s
            self._daemon.message = f"the daemon was not ready within {limit:g} s; see the log"
            self._daemon.kill()

    def _on_daemon_exit(self) -> None:
        daemon = self._daemon
        if not daemon:
            return
        if daemon.control in self._selector.get_map():
            self._selector.unregister(daemon.control)
            while (message := daemon.receive()) and message.get("event") == "failed":
                daemon.message = str(message.get("message", "the daemon failed"))
                code = message.get("exit_code")
                daemon.failure_exit_code = code if isinstance(code, int) else None
        self._selector.unregister(daemon.pidfd)
        self._daemon = None
        for timer in ("daemon", "lost socket"):
            self._timers.pop(timer, None)
        code = daemon.reap()
        self._last_exit = {
            "code": code if code >= 0 else None,
            "signal": -code if code < 0 else None,
            "message": daemon.message,
        }
        if self._phase == "stopping":
            self._phase = "ended"
        elif self._phase == "starting":
            self._fail_start(daemon, code)
        else:
            planned = daemon.state == "stopping"
            wait_s = 0.0 if planned else self._backoff.next_wait_s(daemon.lived_s())
            why = "stopped" if planned else f"ended ({self._last_exit}), next in {wait_s:.1f} s"
            log(f"daemon {daemon.pid} {why}")
            self._set_timer("restart", wait_s, self._restart)
            self._enter(self._phase)

    def _fail_start(self, daemon: DaemonProcess, code: int) -> None:
        reason = f"exit code {code}" if code >= 0 else f"signal {-code}"
        message = (
            daemon.message or f"the daemon ended ({reason}) before the mount answered; see the log"
        )
        exit_code = daemon.failure_exit_code or (code if code > 0 else START_FAILED_EXIT_CODE)
        raise MountError(message, exit_code)

    def _restart(self) -> None:
        self._restarts += 1
        self._start_daemon()

    def _stop_daemon(self) -> None:
        if self._daemon and self._daemon.state != "stopping":
            self._daemon.stop()
            self._set_timer("daemon", STOP_TIMEOUT_S, self._daemon.kill)

    # ---- the mount ----

    def _mount(self) -> None:
        settings = self._settings
        fuse_fd = mounting.mount(
            mounting.MountRequest(
                mountpoint=settings.mountpoint,
                source=settings.source,
                max_read_bytes=self._max_read,
                options=settings.option_names(),
            )
        )
        self._lane = _lane.Lane(
            fuse_fd,
            max_read_bytes=self._max_read,
            request_deadline_s=settings.request_deadline_s,
            answer_deadline_s=settings.answer_deadline_s,
        )
        self._selector.register(self._lane.event_fd, selectors.EVENT_READ, self._on_lane_event)
        self._set_timer("mount", settings.start_timeout_s, self._on_mount_timeout)
        self._lane.start()

    def _on_lane_event(self) -> None:
        events = self._lane.events() if self._lane else 0
        if events & _lane.EVENT_INIT_ANSWERED and self._phase == "starting":
            self._probe()
        if events & _lane.EVENT_DAEMON_LOST and self._daemon and self._daemon.state == "running":
            self._set_timer("lost socket", LOST_SOCKET_GRACE_S, self._on_lost_socket)
        if events & _lane.EVENT_UNMOUNTED:
            self._on_unmounted()

    def _on_lost_socket(self) -> None:
        if self._daemon and self._lane and not self._lane.statistics()["attached"]:
            self._daemon.message = "it closed its FUSE socket"
            self._daemon.kill()

    def _probe(self) -> None:
        """Stat the root of the mount, in a process that may hang."""
        pid = os.fork()
        if pid == 0:
            try:
                os.stat(self._settings.mountpoint)
                os._exit(0)
            finally:
                os._exit(1)
        self._probe_pidfd = os.pidfd_open(pid)
        self._selector.register(
            self._probe_pidfd, selectors.EVENT_READ, lambda: self._on_probed(pid)
        )

    def _on_probed(self, pid: int) -> None:
        assert self._probe_pidfd is not None
        self._selector.unregister(self._probe_pidfd)
        os.close(self._probe_pidfd)
        self._probe_pidfd = None
        _, status = os.waitpid(pid, 0)
        if self._phase != "starting":
            return
        if status:
            raise MountError(f"{self._settings.mountpoint}: the mount does not answer; see the log")
        self._timers.pop("mount", None)
        if self._settings.read_ahead_kb:
            mounting.raise_read_ahead(self._settings.mountpoint, self._settings.read_ahead_kb)
        self._enter("serving")
        log(f"mounted {self._settings.source} on {self._settings.mountpoint}")
        self._launcher.mounted()

    def _on_mount_timeout(self) -> None:
        raise MountError(
            f"{self._settings.mountpoint}: the mount did not answer in time; see the log"
        )

    def _on_stop_signal(self) -> None:
        self._stop_signals += 1
        if self._phase == "starting":
            raise MountError("stopped before the mount answered")
        if self._phase in {"serving", "unmounting"}:
            self._enter("unmounting")
            self._try_unmount()

    def _try_unmount(self) -> None:
        try:
            mounting.unmount(self._settings.mountpoint, lazy=self._stop_signals > 1)
        except MountError as error:
            log(f"{error.message}; serving on until nobody uses it")
            self._set_timer("unmount", UNMOUNT_RETRY_S, self._try_unmount)

    def _on_unmounted(self) -> None:
        if self._phase == "starting":
            raise MountError(f"{self._settings.mountpoint} was unmounted while it started")
        self._timers.clear()
        self._enter("stopping")
        self._stop_daemon()
        if self._daemon is None:
            self._phase = "ended"
        elif "daemon" not in self._timers:
            self._set_timer("daemon", STOP_TIMEOUT_S, self._daemon.kill)

    def _clean_up(self, server: control.ControlServer) -> None:
        """Leave nothing behind: no mount, no daemon, no socket."""
        if self._lane:
            if mounting.is_mounted(self._settings.mountpoint):
                try:  # a failed start, or a connection that was aborted
                    mounting.unmount(self._settings.mountpoint, lazy=True)
                except MountError as error:
                    log(error.message)
            self._lane.close()
        if self._daemon:
            self._daemon.kill()
            self._daemon.reap()
        server.close()
        for name in (rundir.STATE_FILE, rundir.DAEMON_SOCKET):
            (self._folder / name).unlink(missing_ok=True)
        log("ended")

    # ---- control ----

    def _status(self) -> control.Message:
        daemon = self._daemon
        return {
            "ok": True,
            "mountpoint": self._settings.mountpoint,
            "source": self._settings.source,
            "state": self._phase,
            "pid": os.getpid(),
            "version": __version__,
            "uptime_s": round(time.monotonic() - self._started_at, 3),
            "max_read": self._max_read,
            "daemon": {
                "pid": daemon.pid if daemon else None,
                "state": daemon.state if daemon else "backoff",
                "restarts": self._restarts,
                "last_exit": self._last_exit,
            },
            "lane": self._lane.statistics() if self._lane else None,
        }

    def _answer(self, request: control.Message) -> control.Message:
        command = request.get("command")
        if command == "status":
            return self._status()
        if command == "restart-daemon":
            self._stop_daemon()
            return {"ok": True}
        if command == "unmount" and self._phase in {"serving", "unmounting"}:
            try:
                mounting.unmount(self._settings.mountpoint, lazy=request.get("lazy") is True)
            except MountError as error:
                return {"ok": False, "error": error.message, "exit_code": error.exit_code}
            return {"ok": True, "pid": os.getpid()}
        return {"ok": False, "error": f"cannot {command} while {self._phase}"}


def lock_run_folder(folder: Path, mountpoint: str) -> None:
    """Make sure that this is the only supervisor of the mountpoint; the lock ends with the process.

    Raises:
        MountError: There is another one.
    """
    lock_fd = os.open(folder / rundir.LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise MountError(
            f"{mountpoint} is a cachefs mount already; `cachefs umount {mountpoint}` ends it"
        ) from None


def start(settings: Settings) -> int:
    """Mount and serve; return the exit code.

    Raises:
        MountError: With the message for the user.
    """
    settings.mountpoint = rundir.canonical_mountpoint(settings.mountpoint)
    mounting.check_options(settings.option_names())
    folder = rundir.make_run_folder(settings.mountpoint)
    lock_run_folder(folder, settings.mountpoint)
    if mounting.is_mounted(settings.mountpoint):
        # Its supervisor is dead, or the lock would be taken: all that it can answer is ENOTCONN.
        mounting.unmount(settings.mountpoint, lazy=True)
    mounting.check_mountpoint(settings.mountpoint)
    if settings.foreground and not settings.log_file:
        return Supervisor(settings, folder, Launcher(None)).run()
    log_fd = open_log(Path(settings.log_file or folder / rundir.LOG_FILE))
    if settings.foreground:
        os.dup2(log_fd, 2)
        return Supervisor(settings, folder, Launcher(None)).run()
    return run_in_background(log_fd, lambda launcher: Supervisor(settings, folder, launcher).run())


def main() -> int:
    """Run the supervisor; a failure is one line on stderr."""
    try:
        return start(parse(sys.argv[1:]))
    except MountError as error:
        sys.stderr.write(f"cachefs: {error.message}\n")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
