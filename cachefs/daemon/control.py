"""The control socket: one JSON request line, one JSON answer line. Answers while reads hang.

An error is `{"error": text, "exit_code": number}`, as in errors.py; what is no command, or failed
in a way that nobody foresaw, has no number.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import trio

from cachefs.errors import CachefsError

logger = logging.getLogger(__name__)

Command = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]

_LONGEST_REQUEST_BYTES = 64 * 1024
_IDLE_S = 60.0


async def serve_control(path: Path, commands: dict[str, Command]) -> None:
    """Answer `{"command": name, ...}` on a Unix socket at `path` until cancelled."""
    await trio.Path(path).unlink(missing_ok=True)
    listener = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    old_mask = os.umask(0o177)
    try:
        await listener.bind(str(path))
    finally:
        os.umask(old_mask)
    listener.listen(16)
    try:
        await trio.serve_listeners(partial(_serve_one, commands), [trio.SocketListener(listener)])
    finally:
        os.unlink(path)


async def _serve_one(commands: dict[str, Command], stream: trio.SocketStream) -> None:
    try:
        line = await _receive_line(stream)
        answer = await _answer(commands, line)
        await stream.send_all(json.dumps(answer).encode() + b"\n")
    except (trio.BrokenResourceError, trio.TooSlowError):
        logger.debug("a control client went away")


async def _receive_line(stream: trio.SocketStream) -> bytes:
    line = b""
    with trio.fail_after(_IDLE_S):
        while not line.endswith(b"\n") and len(line) < _LONGEST_REQUEST_BYTES:
            part = await stream.receive_some()
            if not part:
                break
            line += part
    return line


async def _answer(commands: dict[str, Command], line: bytes) -> dict[str, Any]:
    try:
        request = json.loads(line)
        command = commands[request["command"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {"error": f"not a command: {line[:80]!r}; there are {', '.join(sorted(commands))}"}
    try:
        return await command(request)
    except CachefsError as error:
        return {"error": str(error), "exit_code": error.exit_code}
    except Exception as error:
        logger.exception("command %s failed", request["command"])
        return {"error": f"{type(error).__name__}: {error}"}
