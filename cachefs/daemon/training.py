"""A training, done in a process of its own.

A thread of the daemon would have to give up the processor and the interpreter's lock at the same
moment: one that holds the lock and waits for a processor holds up every read. A process can step
back behind everything else on the host (training_process.py), and what goes wrong in LightGBM ends
that process and not the daemon.

Concurrency: event loop; the model is loaded in a thread.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import trio

from cachefs.errors import CacheError
from cachefs.policy.evict.ml.learned import Training
from cachefs.policy.evict.ml.models import Logistic, Model, load

LONGEST_S = 600.0
"""A training takes a quarter of a second, and longer where the host has no time to spare. Its
process knows it, too: a daemon that was killed ends nobody."""


async def train(work: Training) -> Model:
    """Return the model that a training makes.

    Raises:
        ImportError: what it needs is not installed.
        CacheError: it failed, or took too long.
    """
    try:
        with trio.fail_after(LONGEST_S):
            done = await trio.run_process(
                [sys.executable, "-m", "cachefs.daemon.training_process", str(LONGEST_S)],
                stdin=_asked(work),
                capture_stdout=True,
                check=False,
                deliver_cancel=_kill,
                env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
    except trio.TooSlowError as error:
        raise CacheError(f"there was no time for it within {LONGEST_S:.0f} s") from error
    except OSError as error:
        raise CacheError(f"no process can be started: {error.strerror}") from error
    return await trio.to_thread.run_sync(_answered, done)


def _asked(work: Training) -> bytes:
    """Return what the process reads. Only a logistic model goes on from the last one."""
    before = work.before.state() if isinstance(work.before, Logistic) else b""
    head = {"kind": work.kind.name, "rows": len(work.labels), "seed": work.seed}
    parts = (work.features.tobytes(), work.labels.tobytes(), before)
    return json.dumps(head).encode() + b"\n" + b"".join(parts)


def _answered(done: subprocess.CompletedProcess[bytes]) -> Model:
    head, _, state = done.stdout.partition(b"\n")
    if done.returncode or not head:
        raise CacheError(f"its process ended with {done.returncode}")
    answer = json.loads(head)
    if "missing" in answer:
        raise ImportError(answer["missing"])
    if "failed" in answer:
        raise CacheError(answer["failed"])
    return load(answer["model"], state)


async def _kill(process: trio.Process) -> None:
    process.kill()  # it holds nothing that has to be put away
