"""Models over a real cache folder: trained beside the loop, saved, killed, loaded, moved."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
import trio.testing

from cachefs.daemon.cache import Cache
from cachefs.daemon.learning import Learning, read_model, write_model
from cachefs.daemon.sharing import Sharing
from cachefs.errors import FormatError, NotFoundError, StoreUnavailableError, UsageError
from cachefs.policy.evict.ml.learned import Learned
from cachefs.policy.evict.ml.memory import FEATURES
from cachefs.policy.evict.ml.models import Logistic
from cachefs.policy.evict.ml.saved import Saved, restored, saved
from cachefs.store.layout import model_key
from cachefs.store.store import Store
from cachefs.tiers.fetcher import Fetcher
from cachefs.tiers.jobs import Answer, Job
from cachefs.tiers.models import share_model
from cachefs.units import MIB
from tests.caches import HandPool, fill, opened_cache, plain_chunk, wait_until
from tests.stores import new_store
from tests.unit.daemon.test_training import PutLightGBM, put_lightgbm

__all__ = ["put_lightgbm"]


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    with opened_cache(tmp_path / "c", MIB, policy="ml") as cache:
        yield cache


def policy_of(cache: Cache) -> Learned:
    [held] = cache.l1.classes.values()
    assert isinstance(held.policy, Learned)
    return held.policy


async def warm(cache: Cache) -> None:
    """Give the policy enough to learn from."""
    cache.l1.class_for(4096)
    await cache.keeper._make_room()
    slots = np.array([fill(cache, plain_chunk(number)) for number in range(16)])
    rng = np.random.default_rng(0)
    for _ in range(300):
        cache.l1.touch_many(slots[rng.zipf(1.3, 400) % 16])


async def trained(cache: Cache) -> Learning:
    await warm(cache)
    learning = Learning(cache)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(learning.run)
        await wait_until(lambda: policy_of(cache).trainings > 0)
        nursery.cancel_scope.cancel()
    return learning


def some_model(trainings: int = 3) -> Saved:
    zeros = np.zeros(len(FEATURES), np.float32)
    return Saved(
        Logistic(np.zeros(len(FEATURES) + 1, np.float32), zeros, zeros + 1), 9, "model", trainings
    )


async def test_it_trains_saves_and_goes_on_after_a_restart(tmp_path: Path, cache: Cache) -> None:
    learning = await trained(cache)
    assert cache.l1.metrics.trainings >= 1
    await learning.save()
    path = cache.folder.path / "model-4096"
    assert read_model(path).trainings == policy_of(cache).trainings
    cache.change_policy("lru")
    cache.change_policy("ml")  # another object, as after a restart
    assert policy_of(cache).model is None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Learning(cache).run)
        await wait_until(lambda: policy_of(cache).model is not None)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("damage", [b"", b"a letter", b"cachefsM" + bytes(12), None])
async def test_a_damaged_model_is_passed_over(
    cache: Cache, damage: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    await warm(cache)
    path = cache.folder.path / "model-4096"
    if damage is None:
        path.mkdir()
    else:
        path.write_bytes(damage)
    learning = Learning(cache)
    await learning._load(0, policy_of(cache))
    assert policy_of(cache).model is None
    assert "learning starts anew" in caplog.text


async def test_what_a_killed_daemon_was_writing_is_removed(cache: Cache) -> None:
    await warm(cache)
    left = cache.folder.path / "model-4096.tmp"
    left.write_bytes(b"half a model")
    await Learning(cache)._load(0, policy_of(cache))
    assert not left.exists()


async def test_show_export_import_reset(tmp_path: Path, cache: Cache) -> None:
    learning = await trained(cache)
    answer: dict[str, Any] = await learning.command({"action": "show"})
    told = answer["classes"][4096]
    assert told["model"] == "trees"
    assert time.time() - 60 < told["trained_at"] <= time.time()
    assert 0 < told["training_s"] <= cache.l1.metrics.training_us / 1e6 + 1e-3 < 60
    await learning.command({"action": "export", "path": str(tmp_path / "model")})
    await learning.save()
    assert (cache.folder.path / "model-4096").exists()
    await learning.command({"action": "reset"})
    assert not (cache.folder.path / "model-4096").exists()
    with pytest.raises(UsageError, match="nothing is learned"):
        await learning.command({"action": "export", "path": str(tmp_path / "other")})
    await learning.command({"action": "import", "path": str(tmp_path / "model")})
    assert policy_of(cache).model is not None
    (tmp_path / "letter").write_text("Dear reader")
    with pytest.raises(FormatError, match="no model of cachefs"):
        await learning.command({"action": "import", "path": str(tmp_path / "letter")})
    with pytest.raises(NotFoundError, match="nowhere"):
        await learning.command({"action": "import", "path": str(tmp_path / "nowhere")})
    with pytest.raises(UsageError, match="cannot 'sell'"):
        await learning.command({"action": "sell"})


async def test_a_policy_that_learns_nothing_has_no_model(cache: Cache) -> None:
    await warm(cache)
    cache.change_policy("s3fifo")
    with pytest.raises(UsageError, match="policy is 's3fifo'"):
        await Learning(cache).command({"action": "show"})


async def test_a_full_disk_costs_only_the_model(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    learning = await trained(cache)
    await learning.save()
    path = cache.folder.path / "model-4096"
    before = path.read_bytes()

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    await learning.save()
    assert "No space left" in caplog.text
    assert path.read_bytes() == before


async def test_a_training_that_fails_leaves_the_old_model(
    cache: Cache, put_lightgbm: PutLightGBM, caplog: pytest.LogCaptureFixture
) -> None:
    put_lightgbm("def Dataset(*_, **__): raise RuntimeError('out of leaves')")
    await warm(cache)
    policy_of(cache).take_over(before := some_model())
    await warm(cache)
    learning = Learning(cache)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(learning.run)
        await wait_until(lambda: "out of leaves" in caplog.text)
        nursery.cancel_scope.cancel()
    assert policy_of(cache).model is before.model


WRITER = """
import sys
import threading
from pathlib import Path
from tests.unit.daemon.test_learning import some_model
from cachefs.daemon.learning import write_model
print("ready", flush=True)
number = 1
while True:
    write_model(Path(sys.argv[1]), some_model(number))
    number += 1
"""


def test_kill_9_while_saving_leaves_a_whole_model(tmp_path: Path) -> None:
    path = tmp_path / "model"
    write_model(path, some_model(0))
    for round_ in range(6):
        command = [sys.executable, "-c", WRITER, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"ready\n"
            time.sleep(0.02 + 0.013 * round_)
            writer.send_signal(signal.SIGKILL)
        assert read_model(path).trainings >= 0


@pytest.mark.parametrize(
    "missing",
    ["ImportError(\"No module named 'lightgbm'\")", "OSError('libgomp.so.1: no such file')"],
)
async def test_without_lightgbm_it_learns_by_logistic_regression(
    cache: Cache, missing: str, put_lightgbm: PutLightGBM, caplog: pytest.LogCaptureFixture
) -> None:
    put_lightgbm(f"raise {missing}")
    await trained(cache)
    assert policy_of(cache).what_it_does()["model"] == "logistic"
    assert caplog.text.count("learns by logistic regression") == 1
    assert missing.split("'")[1] in caplog.text


def shared_store(tmp_path: Path, trainings: int = 3) -> Store:
    store = new_store(tmp_path)
    share_model(store, 4096, saved(some_model(trainings)))
    return store


async def shared(cache: Cache, store: Store, until: Callable[[], bool]) -> Learning:
    """Let what learns run, with a real fetcher's answers, until something holds."""
    pool = HandPool(Fetcher(store.url, store.identity))
    learning = Learning(cache, Sharing(pool))

    async def answer() -> None:
        while True:
            await trio.sleep(0.01)
            if pool.jobs:
                pool.answer()

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            nursery.start_soon(learning.run)
            await wait_until(until)
            nursery.cancel_scope.cancel()
    return learning


def untrained(cache: Cache) -> Learned:
    """Return the policy of a cache in which nothing was used yet, so that nothing is learned."""
    cache.l1.class_for(4096)
    return policy_of(cache)


async def test_a_cache_without_a_model_starts_with_the_shared_one(
    tmp_path: Path, cache: Cache
) -> None:
    policy = untrained(cache)
    learning = await shared(cache, shared_store(tmp_path), lambda: policy.model is not None)
    told = policy.what_it_does()
    assert (told["model"], told["origin"], told["trainings"]) == ("logistic", "store", 3)
    assert told["ruler"] == "lru"  # it has not proved itself here
    await learning.save()
    assert read_model(cache.folder.path / "model-4096").origin == "store"


async def test_its_own_model_wins_over_the_shared_one(tmp_path: Path, cache: Cache) -> None:
    policy = untrained(cache)
    write_model(cache.folder.path / "model-4096", some_model(1))
    await shared(cache, shared_store(tmp_path, 9), lambda: policy.model is not None)
    assert (policy.origin, policy.trainings) == ("own", 1)


async def test_a_model_that_is_proved_is_shared_once(tmp_path: Path, cache: Cache) -> None:
    policy = untrained(cache)
    store = shared_store(tmp_path, 3)
    policy.take_over(some_model(7))
    path = tmp_path / "store" / model_key(4096)
    learning = Learning(cache, Sharing(HandPool()))
    assert learning._sharing is not None
    assert not learning._sharing._is_due(0, policy)  # nothing was compared yet
    policy.guard._blocks["model"] = 99.0
    learning._sharing._given[0] = 7
    assert not learning._sharing._is_due(0, policy)
    await shared(cache, store, lambda: restored(path.read_bytes()).trainings == 7)
    policy.guard._lead["s3fifo"] = 1.0
    assert not policy.guard.has_proved_model()


async def test_after_a_reset_the_shared_model_stays_away(tmp_path: Path, cache: Cache) -> None:
    policy = untrained(cache)
    store = shared_store(tmp_path)
    learning = await shared(cache, store, lambda: policy.model is not None)
    await learning.command({"action": "reset"})
    for _ in range(2):
        end_s = time.monotonic() + 2.5

        def is_over(end_s: float = end_s) -> bool:
            return time.monotonic() > end_s

        await shared(cache, store, is_over)
        assert policy.model is None  # nor for the next daemon
    write_model(tmp_path / "file", some_model(4))
    await learning.command({"action": "import", "path": str(tmp_path / "file")})
    assert policy.what_it_does()["origin"] == "imported"
    assert not (cache.folder.path / "model-4096.reset").exists()


async def test_a_store_that_fails_is_asked_some_times(
    cache: Cache, caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    asked = 0

    class Away(HandPool):
        async def ask(self, job: Job, priority: int) -> Answer:
            nonlocal asked
            asked += 1
            raise StoreUnavailableError("it is away")

    sharing, policy = Sharing(Away()), untrained(cache)
    sharing.want(0, policy)
    with trio.move_on_after(3600):
        await sharing.run(lambda: {0: policy})
    assert asked == 6
    policy.take_over(some_model())
    policy.guard._blocks["model"] = 99.0
    with trio.move_on_after(3600):
        await sharing.run(lambda: {0: policy})
    assert asked == 6 + 12  # after pauses of 5 s, twice as long each time, 10 minutes at most
    assert caplog.text.count("models are not shared") == 1
