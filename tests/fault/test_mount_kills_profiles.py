"""Kill -9 while profiles are kept and shared: each is the old or the new, and the index whole."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random

import lmdb
import pytest

from cachefs.index.database import DATABASES, MAP_BYTES
from cachefs.model.chunk import chunk_id
from cachefs.policy.prefetch.profile import Profile, from_bytes
from cachefs.policy.prefetch.starts import starts_in
from cachefs.store.layout import PROFILES_PREFIX
from cachefs.store.store import Store
from tests.mount.mounts import Mount, Mounts, exists, read_direct, wait_for
from tests.mount.samples import KIB, noise
from tests.stores import import_bytes, new_store

pytestmark = [pytest.mark.mount, pytest.mark.slow]

KILLS = int(os.environ.get("CACHEFS_LEARNING_KILLS", "3")) // 3 * 2
"""`make stress` makes it 40."""
SEED = int(os.environ.get("CACHEFS_LEARNING_SEED", "1"))
LATEST_S = 0.25
"""After the first of them: by then all profiles are kept and shared."""

CHUNK = 4 * KIB
DATA = {f"guest-{number}": noise(64 * CHUNK, number) for number in range(24)}
QUIET_WAIT_S = 60.0


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = new_store(tmp_path)
    for name, data in DATA.items():
        import_bytes(store, data, name, CHUNK)
    return store


@pytest.mark.timeout(240 + 80 * KILLS)
def test_a_kill_while_profiles_are_saved_leaves_the_old_or_the_new(
    mounts: Mounts, store: Store
) -> None:
    mount, choice = mounts(store.url).start(), Random(SEED)
    known: dict[str, int] = {}
    interrupted = 0
    for number in range(KILLS):
        before = begin_to_save(mount, choice)
        whole = mount.pids()
        victims = [whole, [mount.daemon_pid()], mount.daemon()["fetchers"]["pids"]][number % 3]
        wait_for_a_moment(mount, before, choice)
        kill(victims)
        interrupted += saved_since(mount, before) < len(DATA)
        if victims is whole:
            mount.umount()
            check_index(mount)
            mount.start()
        mount.daemon_pid()  # waits for the next
        known = check_profiles(mount, store, known)
    assert interrupted >= KILLS // 10
    assert known
    for name, data in DATA.items():
        assert read_direct(mount / name) == data
    assert mount.metrics()["read_errors"] == 0
    mount.umount()
    check_index(mount)
    for unwanted in ("Traceback", "is damaged", "passed over", "L1 starts empty"):
        assert unwanted not in mount.log(), mount.log()[mount.log().index(unwanted) :][:2000]


def begin_to_save(mount: Mount, choice: Random) -> dict[str, float]:
    """Start a guest of each image and end it; returns when each profile was saved before."""
    for name, data in DATA.items():
        with (mount / name).open("rb"):
            for chunk in choice.sample(range(64), 32):
                at = chunk * CHUNK
                assert read_direct(mount / name, at, CHUNK) == data[at : at + CHUNK]
    return {name: profile.saved_s for name, profile in kept(mount).items()}


def saved_since(mount: Mount, before: dict[str, float]) -> int:
    """Return how many profiles were saved."""
    now = kept(mount).items()
    return sum(profile.saved_s > before.get(name, 0) for name, profile in now)


def wait_for_a_moment(mount: Mount, before: dict[str, float], choice: Random) -> None:
    """Wait until profiles are being saved, and a little longer."""
    wait_for(lambda: saved_since(mount, before), "the first profile", QUIET_WAIT_S)
    time.sleep(choice.uniform(0, LATEST_S))


def kill(pids: list[int]) -> None:
    """Kill processes, all at once, and wait for their end."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not any(map(exists, pids)), "their end")


def check_profiles(mount: Mount, store: Store, before: dict[str, int]) -> dict[str, int]:
    """Every profile, here and in the store, is whole, and none has gone; returns their runs."""
    runs = {name: runs_of(profile) for name, profile in kept(mount).items()}
    for name, count in before.items():
        assert runs[name] >= count, name
    for info in store.objects.list(PROFILES_PREFIX):
        assert runs_of(from_bytes(store.objects.get(info.key)[0])) > 0
    shown = mount.command("profile", "list", mount.mountpoint)
    assert (shown.returncode, shown.stderr) == (0, "")
    return runs


def runs_of(profile: Profile) -> int:
    return starts_in(profile.sections["replay"])


def kept(mount: Mount) -> dict[str, Profile]:
    """Return what the index has, whatever the daemon thinks of it."""
    found = {}
    with index(mount) as environment:
        database = environment.open_db(b"profiles", create=False)
        with environment.begin(db=database) as txn:
            for name in DATA:
                row = txn.get(chunk_id(name.encode()))
                if row is not None:
                    found[name] = from_bytes(bytes(row[8:]))
    return found


def check_index(mount: Mount) -> None:
    """Read every row of the index; each slot's chunk says that it is there."""
    rows: dict[str, list[tuple[bytes, bytes]]] = {}
    with index(mount) as environment:
        for name in DATABASES:
            database = environment.open_db(name.encode(), create=False)
            with environment.begin(db=database) as txn:
                rows[name] = [(bytes(key), bytes(value)) for key, value in txn.cursor()]
                assert txn.stat(database)["entries"] == len(rows[name])
    residents = {key for key, _ in rows["residency"]}
    assert {value for _, value in rows["slots"]} <= residents


@contextmanager
def index(mount: Mount) -> Iterator[lmdb.Environment]:
    path = mount.cache / "index.lmdb"
    with lmdb.open(
        str(path), map_size=MAP_BYTES, max_dbs=len(DATABASES), readonly=True, create=False
    ) as environment:
        yield environment
