"""What was learned, and what of it is there after a clean restart and after an upgrade."""

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from mount_helper import control
from tests.mount.learning import CHUNK, DATA, OPTIONS, read_until, ruler, shown
from tests.mount.mounts import Mount, Mounts, exists, read_direct, wait_for
from tests.mount.samples import KIB, noise
from tests.stores import import_bytes, new_store

pytestmark = pytest.mark.mount

STARTED = noise(4096 * KIB, 8)
"""An image that a guest starts from, in small chunks: what it does repeats."""
ARMS = {"replay", "recurrence", "markov", "association"}
MOST_STARTS = 20
"""Of hits that come fast only some are looked at."""


@pytest.fixture
def mount(mounts: Mounts, tmp_path: Path) -> Mount:
    store = new_store(tmp_path)
    import_bytes(store, DATA, "image", CHUNK)
    import_bytes(store, STARTED, "started", 4 * KIB)
    return mounts(store.url).start(OPTIONS)


def start_guest(mount: Mount) -> None:
    """Read as a guest does: here and there, in the same order each time, until all arms know it."""
    places = Random(4).sample(range(len(STARTED) // 4096), 600)
    for _ in range(MOST_STARTS):
        with (mount / "started").open("rb"):
            for place in places * 2:
                at = place * 4096
                assert read_direct(mount / "started", at, 4096) == STARTED[at : at + 4096]
        if set(profile(mount)["rows"]) == ARMS:
            return
    raise AssertionError(f"after {MOST_STARTS} starts: {profile(mount)}")


def profile(mount: Mount) -> dict[str, Any]:
    done = mount.command("profile", "show", "--json", mount.mountpoint, "started")
    assert done.returncode == 0, done.stderr
    [found] = json.loads(done.stdout)["profiles"]
    return dict(found)


def known(mount: Mount) -> dict[str, Any]:
    """What has to outlive a daemon."""
    told, kept = shown(mount), profile(mount)
    model = {name: told[name] for name in ("model", "trainings", "origin", "ruler")}
    return model | {name: kept[name] for name in ("rows", "runs", "working_set_bytes")}


def check_what_a_new_daemon_knows(mount: Mount, before: dict[str, Any]) -> None:
    wait_for(lambda: shown(mount)["model"], "the model")
    assert known(mount) == before
    told = shown(mount)
    # The model was made of these; what the next one is made of begins anew, and so does the
    # comparison with other policies.
    assert told["labelled_samples"] == told["changes_of_ruler"] == 0
    assert set(told["regret"].values()) == {0.0}
    assert mount.daemon()["l1"]["policy"] == "ml"
    assert mount.daemon()["l1"]["resident_chunks"] > 0


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_what_was_learned_is_there_after_a_restart_and_an_upgrade(mount: Mount) -> None:
    start_guest(mount)
    assert read_direct(mount / "image") == DATA
    read_until(mount, Random(2), lambda: ruler(mount) == "model")
    before = known(mount)
    assert before["trainings"] >= 1
    assert set(before["rows"]) == ARMS
    assert min(before["rows"].values()) > 0

    mount.umount()
    mount.start(OPTIONS)
    check_what_a_new_daemon_knows(mount, before)

    old = mount.daemon_pid()
    with (mount / "image").open("rb", buffering=0) as opened:
        assert control.ask(mount.run_folder, {"command": "restart-daemon"})["ok"]
        wait_for(lambda: not exists(old), "the end of the old daemon")
        assert opened.read(CHUNK) == DATA[:CHUNK]  # by the next one, with nothing opened anew
        check_what_a_new_daemon_knows(mount, before)
    assert read_direct(mount / "started") == STARTED
    assert mount.supervised()["daemon"]["restarts"] == 1
    assert mount.metrics()["read_errors"] == 0
