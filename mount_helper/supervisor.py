"""The supervisor: mounts, holds the lane, keeps a daemon running, and ends all in order.

    python -m mount_helper.supervisor --mountpoint M --source URL ... -- DAEMON_ARGV...

In the background its working folder is `/`: paths in DAEMON_ARGV are absolute.

The order of a start: check the mountpoint; start the daemon; when it is ready, mount, and give it
to the lane; when INIT is answered and a stat of the root works, tell the launcher. A failure on
the way leaves nothing mounted.

The end: the kernel has unmounted (umount(8), fusermount3 -u, the `unmount` command), then the
daemon is stopped, in 20 s at most. SIGTERM and SIGINT unmount. If the mount is in use then, it
goes on to serve: guests would lose their disks. It tries again every second, so it ends with the
last user; a second signal takes the mount out of the tree (lazy), and open files are served until
they are closed.

Concurrency: one thread, one loop. The lane's threads tell it of events through an eventfd. Nothing
here touches the mount: a look at it could hang (the check at the start is a process of its own).
"""

import json
import os
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path

from mount_helper import __version__, _lane, board, control, mounting, rundir
from mount_helper.daemon_keeper import DaemonEnd, DaemonKeeper
from mount_helper.daemon_process import DaemonProcess, socket_holds_large_messages
from mount_helper.errors import MOUNT_FAILED_EXIT_CODE, MountError
from mount_helper.event_loop import EventLoop
from mount_helper.launching import Launcher, log, open_log, run_in_background
from mount_helper.settings import LARGEST_READ_BYTES, Settings, parse

UNMOUNT_RETRY_S = 1.0
SMALL_READ_BYTES = 131072  # what a socket of the default size can carry with its header
BEST_THREADS = 2
# Asynchronous reads in flight: the kernel's 12 would starve a deep queue, and whatever waits for a
# store that is away must leave room for the reads of other images.
MAX_BACKGROUND = 4096
MOUNT_DEADLINE, UNMOUNT_RETRY, HEARTBEAT = "mount deadline", "unmount retry", "heartbeat"
HEARTBEAT_LOOK_S = 0.5


class Supervisor:
    """One mount, from its start to its end."""

    def __init__(self, settings: Settings, folder: Path, launcher: Launcher) -> None:
        self._settings = settings
        self._folder = folder
        self._launcher = launcher
        self._loop = EventLoop()
        self._board_fd = board.create()
        self._keeper = DaemonKeeper(
            self._loop,
            settings,
            folder,
            self._board_fd,
            self._on_segment,
            self._on_daemon_ready,
            self._on_daemon_end,
        )
        self._lane: _lane.Lane | None = None
        self._segments: dict[int, int] = {}
        self._beats, self._silent_looks = 0, 0
        self._phase = "starting"
        self._is_probing = False
        self._stop_signals = 0
        self._started_at = time.monotonic()
        large = os.geteuid() == 0 and socket_holds_large_messages()
        limit = LARGEST_READ_BYTES if large else SMALL_READ_BYTES
        self._max_read = min(settings.max_read or limit, limit)

    def run(self) -> int:
        """Serve until the end of the mount; return the exit code."""
        failure: MountError | None = None
        server = control.ControlServer(self._folder, self._loop, self._answer)
        self._loop.watch_signals({signal.SIGTERM, signal.SIGINT}, self._on_stop_signal)
        try:
            self._keeper.start()
            while self._phase != "ended":
                self._loop.run_once()
        except MountError as error:
            failure = error
        finally:
            self._clean_up(server)
        if failure:
            log(failure.message)
            self._launcher.failed(failure)
            return failure.exit_code
        return 0

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

    def _on_daemon_ready(self, daemon: DaemonProcess) -> None:
        if not self._lane:
            self._lane = self._mount()
        reads_fd = daemon.give_reads(self._lane.device_fds) if daemon.takes_reads else -1
        self._lane.attach(daemon.fuse_end.detach(), reads_fd)
        self._silent_looks = 0
        self._enter(self._phase)

    def _on_segment(self, number: int, fd: int) -> None:
        """Let the lane read a class of slots from this file, now or as soon as there is a lane."""
        if self._lane:
            self._lane.set_segment(number, fd)
        else:
            earlier = self._segments.pop(number, -1)
            if earlier >= 0:
                os.close(earlier)
            self._segments[number] = os.dup(fd)

    def _look_for_heartbeat(self) -> None:
        """Kill a daemon that hangs. Looks are counted, not time: the host may have stood still."""
        beats = self._lane.statistics()["beats"] if self._lane else 0
        self._silent_looks = self._silent_looks + 1 if beats == self._beats else 0
        self._beats = beats
        silent_s = self._silent_looks * HEARTBEAT_LOOK_S
        if silent_s >= self._settings.heartbeat_timeout_s:
            self._silent_looks = 0
            self._keeper.kill_hung(silent_s)
        self._loop.set_timer(HEARTBEAT, HEARTBEAT_LOOK_S, self._look_for_heartbeat)

    def _on_daemon_end(self, end: DaemonEnd, was_planned: bool) -> None:
        if self._phase == "stopping":
            self._phase = "ended"
        elif self._phase == "starting":
            message = (
                end.message or f"the daemon ended before the mount answered ({end.describe()})"
            )
            exit_code = end.failure_exit_code or end.code or MOUNT_FAILED_EXIT_CODE
            raise MountError(f"{message}; its log: {self._log_name()}", exit_code)
        else:
            wait_s = self._keeper.schedule_restart(was_planned=was_planned)
            log(f"the daemon ended ({end.describe()}); the next starts in {wait_s:g} s")
            self._enter(self._phase)

    def _log_name(self) -> str:
        own = self._settings.log_file or str(self._folder / rundir.LOG_FILE)
        return own if self._settings.log_file or not self._settings.foreground else "above"

    # ---- the mount ----

    def _mount(self) -> _lane.Lane:
        settings = self._settings
        fuse_fd = mounting.mount(
            mounting.MountRequest(
                mountpoint=settings.mountpoint,
                source=settings.source,
                max_read_bytes=self._max_read,
                options=settings.option_names(),
            )
        )
        lane = _lane.Lane(
            fuse_fd,
            self._board_fd,
            threads=settings.threads or BEST_THREADS,
            max_read_bytes=self._max_read,
            max_background=MAX_BACKGROUND,
            request_deadline_s=settings.request_deadline_s,
            answer_deadline_s=settings.answer_deadline_s,
            disk_patience_s=settings.disk_patience_s,
        )
        for number, fd in self._segments.items():
            lane.set_segment(number, fd)
            os.close(fd)
        self._segments.clear()
        if settings.heartbeat_timeout_s:
            self._loop.set_timer(HEARTBEAT, HEARTBEAT_LOOK_S, self._look_for_heartbeat)
        self._loop.watch(lane.event_fd, self._on_lane_event)
        self._loop.set_timer(MOUNT_DEADLINE, settings.start_timeout_s, self._on_mount_timeout)
        lane.start()
        return lane

    def _on_lane_event(self) -> None:
        events = self._lane.events() if self._lane else 0
        if events & _lane.EVENT_INIT_ANSWERED and self._phase == "starting":
            self._probe()
        if events & _lane.EVENT_DAEMON_LOST:
            self._keeper.suspect_lost_socket(self._is_attached)
        if events & _lane.EVENT_UNMOUNTED:
            self._on_unmounted()

    def _is_attached(self) -> bool:
        return self._lane is not None and bool(self._lane.statistics()["attached"])

    def _probe(self) -> None:
        """Stat the root of the mount, in a process that may hang."""
        if self._is_probing:
            return
        self._is_probing = True
        pid = os.fork()
        if pid == 0:
            try:
                os.stat(self._settings.mountpoint)
                os._exit(0)
            finally:
                os._exit(1)
        pidfd = os.pidfd_open(pid)

        def on_end() -> None:
            self._loop.unwatch(pidfd)
            os.close(pidfd)
            self._on_probed(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

        self._loop.watch(pidfd, on_end)

    def _on_probed(self, exit_code: int) -> None:
        if self._phase != "starting":
            return
        mountpoint = self._settings.mountpoint
        if exit_code:
            raise MountError(f"{mountpoint} does not answer; the log: {self._log_name()}")
        self._loop.cancel_timer(MOUNT_DEADLINE)
        if self._settings.read_ahead_kb:
            mounting.raise_read_ahead(mountpoint, self._settings.read_ahead_kb)
        self._enter("serving")
        log(f"mounted {self._settings.source} on {mountpoint}")
        self._launcher.mounted()

    def _on_mount_timeout(self) -> None:
        mountpoint = self._settings.mountpoint
        raise MountError(f"{mountpoint} did not answer in time; the log: {self._log_name()}")

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
            self._loop.set_timer(UNMOUNT_RETRY, UNMOUNT_RETRY_S, self._try_unmount)

    def _on_unmounted(self) -> None:
        if self._phase == "starting":
            raise MountError(f"{self._settings.mountpoint} was unmounted while it started")
        self._loop.cancel_timer(UNMOUNT_RETRY)
        self._enter("stopping")
        self._keeper.stop()
        if self._keeper.daemon is None:
            self._phase = "ended"

    def _clean_up(self, server: control.ControlServer) -> None:
        """Leave nothing behind: no mount, no daemon, no socket."""
        if self._lane:
            if mounting.is_mounted(self._settings.mountpoint):
                try:  # a failed start, or a connection that was aborted
                    mounting.unmount(self._settings.mountpoint, lazy=True)
                except MountError as error:
                    log(error.message)
            self._lane.close()
        self._keeper.kill()
        server.close()
        for name in (rundir.STATE_FILE, rundir.DAEMON_SOCKET):
            (self._folder / name).unlink(missing_ok=True)
        log("ended")

    # ---- control ----

    def _status(self) -> control.Message:
        daemon, last_end = self._keeper.daemon, self._keeper.last_end
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
                "restarts": self._keeper.restarts,
                "last_exit": asdict(last_end) if last_end else None,
            },
            "lane": self._lane.statistics() if self._lane else None,
        }

    def _answer(self, request: control.Message) -> control.Message:
        command = request.get("command")
        if command == "status":
            return self._status()
        if command == "restart-daemon" and self._phase in {"serving", "unmounting"}:
            self._keeper.restart()
            return {"ok": True}
        if command == "unmount" and self._phase in {"serving", "unmounting"}:
            try:
                mounting.unmount(self._settings.mountpoint, lazy=request.get("lazy") is True)
            except MountError as error:
                return {"ok": False, "error": error.message, "exit_code": error.exit_code}
            return {"ok": True, "pid": os.getpid()}
        return {"ok": False, "error": f"cannot {command} while {self._phase}"}


def start(settings: Settings) -> int:
    """Mount and serve; return the exit code.

    Raises:
        MountError: With the message for the user.
    """
    settings.mountpoint = rundir.canonical_mountpoint(settings.mountpoint)
    mounting.check_options(settings.option_names())
    folder = rundir.make_run_folder(settings.mountpoint)
    rundir.lock_run_folder(folder, settings.mountpoint)
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
