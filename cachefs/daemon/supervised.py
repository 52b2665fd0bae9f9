"""The daemon's side of its talk with the supervisor: JSON messages on a SOCK_SEQPACKET socket."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

_LONGEST_MESSAGE_BYTES = 65536
_MOST_FDS = 1 + 16


@dataclass(frozen=True, slots=True)
class Start:
    """What the supervisor gives to a daemon that it starts.

    `fresh`: the mount is new; else the kernel knows inodes and files of an earlier daemon.
    `is_wary`: that one ended as on a disk that fails, so the disk is looked at before it is used.
    """

    fuse_fd: int
    board_fd: int
    run_dir: Path
    fresh: bool
    is_wary: bool = False


class Supervisor:
    """The other end of `--supervisor-fd`."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)

    def ready(self) -> None:
        """Say that requests can come."""
        self._send({"event": "ready", "reads": True})

    def offer_segment(self, number: int, fd: int) -> None:
        """Give the lane the file of a class of slots."""
        self._send({"event": "segment", "class": number}, [fd])

    def failed(self, message: str, exit_code: int) -> None:
        """Say why there will be no daemon."""
        self._send({"event": "failed", "message": message, "exit_code": exit_code})

    async def wait_for_stop(self, take_reads: Callable[[int, list[int]], None]) -> None:
        """Return when the supervisor wants us to stop, or is gone.

        `take_reads` gets the socket for reads and the open files of /dev/fuse, and owns them.
        """
        self._socket.setblocking(False)
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            data, fds, _, _ = socket.recv_fds(self._socket, _LONGEST_MESSAGE_BYTES, _MOST_FDS)
            command = json.loads(data).get("command") if data else "stop"
            if command == "reads":
                take_reads(fds[0], fds[1:])
            elif command == "stop":
                return

    def _send(self, message: dict[str, object], fds: Sequence[int] = ()) -> None:
        try:
            socket.send_fds(self._socket, [json.dumps(message).encode()], fds)
        except OSError:
            pass  # the supervisor is gone: nobody is left to be told
