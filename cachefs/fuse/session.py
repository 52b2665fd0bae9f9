"""The FUSE session over a socket that the lane gave us instead of /dev/fuse."""

from __future__ import annotations

import pyfuse3

from cachefs.fuse.operations import Operations

_IDLE_TASKS = 1
"""Tasks that pyfuse3 keeps ready. They take turns at each request, so more of them cost: with 64
kept, 4 KiB reads at depth 32 ran at 0.8 of the speed with one. A read that waits starts another."""

_MAX_TASKS = 4096
"""Requests under way at once. A read that waits for the store holds a task, and the hits behind it
must find another: more than a kernel sends by itself, bounded all the same."""


def open_session(operations: Operations, fuse_fd: int) -> None:
    """Let libfuse take requests from an open fd. One session a process."""
    pyfuse3.init(operations, f"/dev/fd/{fuse_fd}", set())


async def run_session() -> None:
    """Answer requests until `end_session`, or until the lane has gone."""
    await pyfuse3.main(min_tasks=_IDLE_TASKS, max_tasks=_MAX_TASKS)


def end_session() -> None:
    """Let `run_session` return."""
    pyfuse3.terminate()


def close_session() -> None:
    """Give the session's memory back; the mount is the supervisor's."""
    pyfuse3.close(unmount=False)
