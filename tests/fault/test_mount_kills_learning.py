"""Kill -9 around the training and saving of models: the next start has a sound one, or none."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

from cachefs.daemon.learning import read_model
from tests.mount.learning import (
    CHUNK,
    DATA,
    OPTIONS,
    TRAINER_WAIT_S,
    left_behind,
    read_until,
    shown,
    trainers,
)
from tests.mount.mounts import Mount, Mounts, exists, read_direct, wait_for
from tests.stores import import_bytes, new_store

pytestmark = [pytest.mark.mount, pytest.mark.slow]

KILLS = int(os.environ.get("CACHEFS_LEARNING_KILLS", "3"))
"""`make stress` makes it 60."""
SEED = int(os.environ.get("CACHEFS_LEARNING_SEED", "1"))
LATEST_TRAINING_S, LATEST_SAVING_S = 0.5, 0.04
"""A training takes a quarter of a second, a saving some milliseconds."""


@pytest.fixture
def mount(mounts: Mounts, tmp_path: Path) -> Mount:
    store = new_store(tmp_path)
    import_bytes(store, DATA, chunk_bytes=CHUNK)
    return mounts(store.url).start(OPTIONS)


@pytest.mark.timeout(240 + 120 * KILLS)
def test_a_kill_around_a_training_leaves_a_sound_model_or_none(mount: Mount) -> None:
    choice, file = Random(SEED), mount.cache / f"model-{CHUNK}"
    for number in range(KILLS):
        trainer = next_trainer(mount, choice)
        whole = [*mount.pids(), trainer]
        victims = [[mount.daemon_pid()], [trainer], whole][number % 3]
        wait_for_a_moment(trainer, choice)
        had = file.exists()
        kill(victims)
        if victims is whole:
            for pid in whole:
                wait_for_end(pid)
            mount.umount()
            mount.start(OPTIONS)
        elif victims != [trainer]:
            wait_for_end(victims[0])
            mount.daemon_pid()  # waits for the next
        read_direct(mount / "image", 0, CHUNK)
        if had:  # a file, once there, is a whole model, and the next daemon takes it
            wait_for(lambda: shown(mount)["trainings"] >= 1, f"the model after kill {number}")
            assert read_model(file).trainings >= 1
            assert left_behind(mount.cache) == []
        assert shown(mount)["model"] in {None, "trees"}
        wait_for_end(trainer)
    read_until(mount, choice, lambda: shown(mount)["model"] and file.exists())
    assert read_direct(mount / "image") == DATA
    assert left_behind(mount.cache) == []
    assert mount.metrics()["read_errors"] == 0
    for unwanted in ("Traceback", "learning starts anew"):
        assert unwanted not in mount.log()


def next_trainer(mount: Mount, choice: Random) -> int:
    """Read until a model is being trained; returns the process that does it."""
    daemon, found = mount.daemon_pid(), list[int]()

    def trains() -> bool:
        found.extend(trainers(daemon))
        return bool(found)

    read_until(mount, choice, trains)
    return found[0]


def wait_for_a_moment(trainer: int, choice: Random) -> None:
    """Wait into the training, or into the saving that comes right behind it."""
    if choice.random() < 0.5:
        time.sleep(choice.uniform(0, LATEST_TRAINING_S))
    else:
        wait_for_end(trainer)
        time.sleep(choice.uniform(0, LATEST_SAVING_S))


def wait_for_end(pid: int) -> None:
    wait_for(lambda: not exists(pid), "the end of a process", TRAINER_WAIT_S)


def kill(pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
