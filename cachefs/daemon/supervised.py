"""The daemon's side of its talk with the supervisor: JSON messages on a SOCK_SEQPACKET socket."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from pathlib import Path

import trio

_LONGEST_MESSAGE_BYTES = 65536


@dataclass(frozen=True, slots=True)
class Start:
    """What the supervisor gives to a daemon that it starts.

    `fresh`: the mount is new; else the kernel knows inodes and files of an earlier daemon.
    """

    fuse_fd: int
    arena_fd: int
    run_dir: Path
    fresh: bool


class Supervisor:
    """The other end of `--supervisor-fd`."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)

    def ready(self) -> None:
        """Say that requests can come."""
        self._send({"event": "ready", "arena": True})

    def failed(self, message: str, exit_code: int) -> None:
        """Say why there will be no daemon."""
        self._send({"event": "failed", "message": message, "exit_code": exit_code})

    async def wait_for_stop(self) -> None:
        """Return when the supervisor wants us to stop, or is gone."""
        self._socket.setblocking(False)
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            data = self._socket.recv(_LONGEST_MESSAGE_BYTES)
            if not data or json.loads(data).get("command") == "stop":
                return

    def _send(self, message: dict[str, object]) -> None:
        try:
            self._socket.send(json.dumps(message).encode())
        except OSError:
            pass  # the supervisor is gone: nobody is left to be told
