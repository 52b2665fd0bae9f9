"""What eviction has learned goes from host to host through the store, and is not believed."""

from pathlib import Path
from random import Random

import pytest

from cachefs.daemon.learning import write_model
from cachefs.errors import ObjectMissingError
from cachefs.ingest.verify import verify_store
from cachefs.policy.evict.ml.saved import restored
from cachefs.store.layout import model_key
from cachefs.store.store import Store, create_store
from tests.mount.learning import CHUNK, DATA, OPTIONS, TRAINER_WAIT_S, shown
from tests.mount.mounts import Mount, Mounts, read_direct, wait_for
from tests.stores import import_bytes, new_store
from tests.unit.daemon.test_learning import some_model

pytestmark = pytest.mark.mount

KEY = model_key(CHUNK)


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    is_local = request.param == "local"
    store = new_store(tmp_path) if is_local else create_store(request.getfixturevalue("s3_url"))
    import_bytes(store, DATA, chunk_bytes=CHUNK)
    return store


def read_at_random(mount: Mount, seed: int) -> None:
    rng = Random(seed)
    for _ in range(300):
        at = min(int(rng.expovariate(0.06)), 95) * CHUNK
        assert read_direct(mount / "image", at, CHUNK) == DATA[at : at + CHUNK]


def is_stored(store: Store) -> bool:
    try:
        return bool(store.objects.get(KEY)[0])
    except ObjectMissingError:
        return False


def test_a_host_starts_with_what_another_has_learned(mounts: Mounts, store: Store) -> None:
    first = mounts(store.url).start(OPTIONS)
    for seed in range(60):
        read_at_random(first, seed)
        if is_stored(store):
            break
    wait_for(lambda: is_stored(store), "the model in the store", TRAINER_WAIT_S)
    assert shown(first)["origin"] == "own"
    first.umount()
    shared = restored(store.objects.get(KEY)[0])
    assert shared.trainings >= 1

    second = mounts(store.url).start(OPTIONS)
    read_direct(second / "image", 0, CHUNK)
    wait_for(lambda: shown(second)["origin"] == "store", "the shared model")
    told = shown(second)
    assert (told["model"], told["trainings"]) == (shared.model.name, shared.trainings)
    text = second.command("model", "show", second.mountpoint).stdout
    assert "from the store" in text
    reset = second.command("model", "reset", second.mountpoint).stdout
    assert "stays in the store" in reset
    second.umount()
    second.start(OPTIONS)
    read_direct(second / "image", 0, CHUNK)
    assert shown(second)["model"] is None
    report = verify_store(store)
    assert (report.foreign, report.problems) == ([], [])


def test_what_is_no_model_is_a_warning(mounts: Mounts, store: Store, tmp_path: Path) -> None:
    store.objects.put(KEY, b"cachefsM" + bytes(5000))
    mount = mounts(store.url).start(OPTIONS)
    read_at_random(mount, 1)
    wait_for(lambda: f"{KEY} is passed over" in mount.log(), "the warning")
    assert shown(mount)["model"] is None
    assert mount.log().count("is passed over") == 1
    write_model(tmp_path / "file", some_model())
    done = mount.command("model", "import", mount.mountpoint, tmp_path / "file")
    assert done.returncode == 0, done.stderr
    assert shown(mount)["origin"] == "imported"
