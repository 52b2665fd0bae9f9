"""The process that trains one model, on processor time that nobody else wants.

`training_process SECONDS`: it ends itself after that, whatever it hangs in. It takes a head (a line
of JSON) and arrays from its standard input, and writes a head and the model's state to its standard
output. See training.py for who starts it and why.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:  # numpy is loaded once the process has stepped back
    from cachefs.policy.evict.ml.models import Logistic, Model, Trees


def main() -> int:
    """Train what comes in; a model that cannot be is an answer, too."""
    signal.setitimer(signal.ITIMER_REAL, float(sys.argv[1]))  # SIGALRM ends it, in C code, too
    step_back()
    try:
        model = _trained(sys.stdin.buffer)
    except (ImportError, OSError) as error:  # also a shared library that LightGBM needs
        return _answer({"missing": str(error)})
    except Exception as error:  # noqa: BLE001 - whatever LightGBM raises, the daemon is told
        return _answer({"failed": repr(error)})
    return _answer({"model": model.name}, model.state())


def step_back() -> None:
    """Leave the processor to whoever wants it, at once and from now on."""
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def _trained(stream: BinaryIO) -> Model:
    import numpy as np  # noqa: PLC0415 - as above

    from cachefs.policy.evict.ml.memory import FEATURES  # noqa: PLC0415
    from cachefs.policy.evict.ml.models import Logistic, Trees  # noqa: PLC0415

    head: dict[str, Any] = json.loads(stream.readline())
    rows = head["rows"]
    features = np.frombuffer(stream.read(4 * rows * len(FEATURES)), np.float32)
    labels = np.frombuffer(stream.read(4 * rows), np.float32)
    state = stream.read()
    kind: type[Trees | Logistic] = Trees if head["kind"] == Trees.name else Logistic
    before = Logistic.of_state(state) if state else None
    return kind.train(features.reshape(rows, len(FEATURES)), labels, before, head["seed"])


def _answer(head: dict[str, str], state: bytes = b"") -> int:
    with suppress(BrokenPipeError):  # the daemon has ended
        sys.stdout.buffer.write(json.dumps(head).encode() + b"\n" + state)
        sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
