"""Trainings in their own process: real models, no model, a process that is killed, its place."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE, Popen

import numpy as np
import pytest
import trio

from cachefs.daemon import training
from cachefs.daemon.training import train
from cachefs.errors import CacheError
from cachefs.policy.evict.ml.learned import Training
from cachefs.policy.evict.ml.memory import FEATURES
from cachefs.policy.evict.ml.models import Logistic, Model, Trees
from tests.caches import wait_until
from tests.timing import Stopwatch

PutLightGBM = Callable[[str], None]
"""Puts a module of this text in the place of LightGBM, for the processes to come."""


@pytest.fixture
def put_lightgbm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PutLightGBM:
    def put(text: str) -> None:
        (tmp_path / "lightgbm.py").write_text(text, encoding="utf-8")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return put


def work(kind: type[Trees | Logistic] = Trees, rows: int = 600, seed: int = 3) -> Training:
    rng = np.random.default_rng(seed)
    features = rng.random((rows, len(FEATURES)), np.float32)
    labels = (features[:, 0] > 0.5).astype(np.float32)
    return Training(kind, features, labels, None, seed)


def children() -> list[int]:
    tasks = Path("/proc/self/task").iterdir()
    return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]


async def child() -> int:
    """Return the process that trains, once it has stepped back."""
    await wait_until(lambda: any(os.sched_getscheduler(p) == os.SCHED_IDLE for p in children()))
    return next(pid for pid in children() if os.sched_getscheduler(pid) == os.SCHED_IDLE)


@pytest.mark.parametrize("kind", [Trees, Logistic])
async def test_the_model_is_the_one_that_would_be_made_here(kind: type[Trees | Logistic]) -> None:
    wanted = work(kind)
    first = await train(wanted)
    assert np.array_equal(first.score(wanted.features), wanted().score(wanted.features))
    assert np.corrcoef(first.score(wanted.features), wanted.labels)[0, 1] > 0.8
    second = wanted._replace(before=first)
    scores = (await train(second)).score(wanted.features)
    assert np.array_equal(scores, second().score(wanted.features))


async def test_what_lightgbm_raises_is_told(put_lightgbm: PutLightGBM) -> None:
    put_lightgbm("raise ImportError(\"No module named 'lightgbm'\")")
    with pytest.raises(ImportError, match="No module named 'lightgbm'"):
        await train(work())
    put_lightgbm("raise OSError('libgomp.so.1: no such file')")
    with pytest.raises(ImportError, match="libgomp"):
        await train(work())
    put_lightgbm("def Dataset(*_, **__): raise RuntimeError('out of leaves')")
    with pytest.raises(CacheError, match="out of leaves"):
        await train(work())
    put_lightgbm("import os; os.abort()")
    with pytest.raises(CacheError, match="its process ended with -6"):
        await train(work())


BUSY = "import time\nwhile True: pass\n"
"""In place of LightGBM: works for ever, with the interpreter's lock."""


async def test_it_steps_back_and_leaves_the_event_loop_alone(put_lightgbm: PutLightGBM) -> None:
    put_lightgbm(BUSY)
    longest_s = 0.0

    async def train_until_killed() -> None:
        with pytest.raises(CacheError, match="its process ended with -9"):
            await train(work())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(train_until_killed)
        pid = await child()
        for _ in range(200):
            watch = Stopwatch()
            await trio.sleep(0.001)
            longest_s = max(longest_s, watch.passed_s)
        os.kill(pid, signal.SIGKILL)
    assert longest_s < 0.2


async def test_one_that_never_ends_is_ended(
    put_lightgbm: PutLightGBM, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_lightgbm(BUSY)
    monkeypatch.setattr(training, "LONGEST_S", 1.0)
    others = children()  # servers of other tests
    with pytest.raises(CacheError, match="no time for it"):
        await train(work())
    assert set(children()) <= set(others)


async def test_it_ends_with_a_daemon_that_stops(put_lightgbm: PutLightGBM) -> None:
    put_lightgbm(BUSY)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(train, work())
        pid = await child()
        nursery.cancel_scope.cancel()
    assert pid not in children()


OWNER = """
import trio
from cachefs.daemon.training import train
from tests.unit.daemon.test_training import work
print("ready", flush=True)
trio.run(train, work(rows=30_000))
"""


def test_it_ends_soon_after_a_daemon_that_was_killed() -> None:
    with Popen([sys.executable, "-c", OWNER], stdout=PIPE) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"ready\n"
        found: list[int] = []
        while not found:
            tasks = Path(f"/proc/{owner.pid}/task").iterdir()
            found = [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
        owner.kill()
    end_s = time.monotonic() + 30
    while Path(f"/proc/{found[0]}/cmdline").exists() and time.monotonic() < end_s:
        time.sleep(0.05)
    assert not Path(f"/proc/{found[0]}").exists()


async def test_it_ends_itself_where_nobody_does(
    put_lightgbm: PutLightGBM, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_lightgbm(BUSY)
    monkeypatch.setattr(training, "LONGEST_S", 1.0)
    monkeypatch.setattr(
        trio, "fail_after", lambda _: trio.CancelScope()
    )  # a daemon that looks at no clock
    with pytest.raises(CacheError, match="its process ended with -14"):
        await train(work())


async def test_without_a_process_to_be_had_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(CacheError, match="no process can be started: No such file"):
        await train(work())


def test_a_training_can_be_called() -> None:
    model: Model = work(Logistic)()
    assert model.name == "logistic"
