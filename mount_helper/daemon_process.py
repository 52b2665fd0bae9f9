"""One daemon process: its start, its two sockets, its messages and its end.

Messages (JSON, one a SOCK_SEQPACKET message): the daemon says {"event": "ready"} when its store is
open and its cache is locked, with "reads": true if it takes reads over a socket of their own;
{"event": "segment", "class": N} with the fd of a segment file; or {"event": "failed", "message":
..., "exit_code": N}. The supervisor says {"command": "reads"} with that socket and the open files
of /dev/fuse, through which such a daemon answers; and {"command": "stop"}. The end of this socket
tells the daemon that its supervisor is gone.
"""

import ctypes
import json
import os
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NoReturn

PR_SET_PDEATHSIG, PR_CAPBSET_DROP, CAP_SYS_RESOURCE = 1, 24, 24
SO_SNDBUFFORCE = 32
# A reply has to fit: 1 MiB and its header; and some, so that a daemon seldom waits for the lane.
SOCKET_BUFFER_BYTES = 8 << 20
LONGEST_MESSAGE_BYTES = 65536

_libc = ctypes.CDLL(None, use_errno=True)


def socket_holds_large_messages() -> bool:
    """Return whether a socket may hold a message of 1 MiB (CAP_NET_ADMIN), not only of 200 KiB."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        return _enlarge(probe)


def _enlarge(end: socket.socket) -> bool:
    try:
        end.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, SOCKET_BUFFER_BYTES)
    except PermissionError:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
        return False
    return True


class DaemonProcess:
    """A started daemon.

    Attributes:
        pid: Of the process.
        pidfd: Readable when it has ended.
        control: The supervisor's end of the message socket.
        takes_reads: Whether it takes reads over a socket of their own.
        fuse_end: The lane's end of its FUSE socket, until the lane takes it.
        state: What it is doing.
        message: What it said about its failure.
    """

    def __init__(
        self,
        argv: Sequence[str],
        run_folder: Path,
        board_fd: int,
        *,
        is_restart: bool,
        is_wary: bool,
    ) -> None:
        self.takes_reads = False
        self.fuse_end, fuse_theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control, control_theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.setblocking(False)
        _enlarge(self.fuse_end)
        _enlarge(fuse_theirs)
        self.state: Literal["starting", "running", "stopping"] = "starting"
        self.started_at = time.monotonic()
        self.ready_at: float | None = None
        self.message = ""
        self.failure_exit_code: int | None = None
        arguments = [
            *argv,
            "--fuse-fd",
            str(fuse_theirs.fileno()),
            "--supervisor-fd",
            str(control_theirs.fileno()),
            "--board-fd",
            str(board_fd),
            "--start",
            "restart" if is_restart else "fresh",
            "--run-dir",
            str(run_folder),
            *(["--wary"] if is_wary else []),
        ]
        with fuse_theirs, control_theirs:
            supervisor_pid = os.getpid()
            self.pid = os.fork()
            if self.pid == 0:
                _become(
                    arguments,
                    (fuse_theirs.fileno(), control_theirs.fileno(), board_fd),
                    supervisor_pid,
                )
        self.pidfd = os.pidfd_open(self.pid)

    def stop(self) -> None:
        """Ask it to end."""
        self.state = "stopping"
        self._send(b'{"command": "stop"}', [])

    def give_reads(self, devices: list[int]) -> int:
        """Give it a socket for reads, and the open files of /dev/fuse; return the lane's end."""
        ours, theirs = socket.socketpair()
        _enlarge(ours)
        _enlarge(theirs)
        with theirs:
            self._send(b'{"command": "reads"}', [theirs.fileno(), *devices])
        return ours.detach()

    def _send(self, message: bytes, fds: list[int]) -> None:
        try:
            socket.send_fds(self.control, [message], fds)
        except OSError:
            pass  # it is ending already

    def kill(self) -> None:
        """End it now."""
        try:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def receive(self) -> dict[str, object] | None:
        """Return its next message; None at the end of the socket, {} when there is none now.

        A file that came with it is the item "fd", and the caller's to close.
        """
        try:
            data, fds, _, _ = socket.recv_fds(self.control, LONGEST_MESSAGE_BYTES, 1)
        except BlockingIOError:
            return {}
        except OSError:
            return None
        if not data:
            return None
        try:
            message = json.loads(data)
        except ValueError:
            message = {}
        if not isinstance(message, dict):
            message = {}
        message["fd"] = fds[0] if fds else -1
        return message

    def reap(self) -> int:
        """Take leave of a process that has ended; return its exit code, -N for signal N."""
        _, status = os.waitpid(self.pid, 0)
        os.close(self.pidfd)
        self.control.close()
        self.fuse_end.close()
        return os.waitstatus_to_exitcode(status)

    def lived_s(self) -> float:
        """Return for how long it has been ready."""
        return time.monotonic() - self.ready_at if self.ready_at is not None else 0.0


def _become(arguments: list[str], fds: tuple[int, ...], supervisor_pid: int) -> NoReturn:
    """In the forked child: turn into the daemon."""
    try:
        # A session of its own: Ctrl-C in a terminal is the supervisor's, which stops it in order.
        os.setsid()
        # It holds /dev/fuse open. Without a lane that would keep a mount alive that nobody serves:
        # not even a daemon that is stopped may live on, so SIGKILL.
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        # libfuse splices requests through a pipe if it can make that larger than a request. From a
        # socket, the kernel allocates 257 pages for each. Without this capability libfuse reads.
        _libc.prctl(PR_CAPBSET_DROP, CAP_SYS_RESOURCE, 0, 0, 0)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        for fd in fds:
            os.set_inheritable(fd, True)
        if os.getppid() == supervisor_pid:
            os.execvp(arguments[0], arguments)
    except OSError as error:
        os.write(2, f"cannot start the daemon {arguments[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(127)
