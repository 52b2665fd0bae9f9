"""Models of eviction in a real store: written, replaced, left alone, passed over."""

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from cachefs.errors import ConflictError, FormatError
from cachefs.ingest.verify import verify_store
from cachefs.policy.evict.ml.memory import FEATURES
from cachefs.policy.evict.ml.models import Logistic
from cachefs.policy.evict.ml.saved import MOST_BYTES, Saved, saved
from cachefs.store.layout import model_key
from cachefs.store.store import Store
from cachefs.tiers.fetcher import Fetcher
from cachefs.tiers.jobs import Failed, ModelFound, ModelJob
from cachefs.tiers.models import share_model
from tests.stores import new_store

SLOT = 65536
KEY = model_key(SLOT)


def model_of(trainings: int) -> bytes:
    zeros = np.zeros(len(FEATURES), np.float32)
    model = Logistic(np.zeros(len(FEATURES) + 1, np.float32), zeros, zeros + 1)
    return saved(Saved(model, 9.0, "model", trainings))


def newer(data: bytes) -> bytes:
    return data[:8] + struct.pack("<I", 99) + data[12:]


def forged(**changes: object) -> bytes:
    """Return a model with a right checksum over a wrong description."""
    said = {"model": "logistic", "features": FEATURES, "boundary": 1, "ruler": "", "trainings": 1}
    description = json.dumps(said | changes).encode()
    head = struct.pack("<8sIII", b"cachefsM", 1, len(description), zlib.crc32(description))
    return head + description


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return new_store(tmp_path)


def stored(store: Store) -> bytes:
    return store.objects.get(KEY)[0]


def test_more_trainings_replace_fewer_and_no_others(store: Store) -> None:
    assert share_model(store, SLOT) == (None, "")
    for trainings, stays in [(3, 3), (2, 3), (3, 3), (5, 5)]:
        share_model(store, SLOT, model_of(trainings))
        assert stored(store) == model_of(stays)
    assert share_model(store, SLOT) == (model_of(5), "")
    assert share_model(store, 4096).data is None
    assert verify_store(store).foreign == []


@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b"junk",
        model_of(9)[:-1],
        bytes(MOST_BYTES + 1),
        forged(),
        forged(model="oracle"),
        forged(trainings=10**9),
        forged(trainings=float("inf")),
        forged(features=["luck"]),
        forged(features=7),
    ],
)
def test_what_is_none_is_told_and_replaced(store: Store, junk: bytes) -> None:
    store.objects.put(KEY, junk)
    found = share_model(store, SLOT)
    assert found.data is None
    assert f"{KEY} is passed over" in found.problem
    share_model(store, SLOT, model_of(1))
    assert stored(store) == model_of(1)


def test_what_a_newer_cachefs_wrote_is_left_alone(store: Store) -> None:
    store.objects.put(KEY, newer(model_of(1)))
    for mine in (b"", model_of(7)):
        found = share_model(store, SLOT, mine)
        assert found.data is None
        assert "left alone: it has version 99" in found.problem
    assert stored(store) == newer(model_of(1))


def test_of_two_at_once_the_better_trained_stays(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = type(store.objects)
    put_if, rivals = objects.put_if, [model_of(8)]

    def slower(self: object, key: str, data: bytes, etag: str | None) -> str:
        if rivals:
            share_model(store, SLOT, rivals.pop())
        return str(put_if(self, key, data, etag))  # type: ignore[arg-type]

    monkeypatch.setattr(objects, "put_if", slower)
    share_model(store, SLOT, model_of(4))
    assert not rivals
    assert stored(store) == model_of(8)


def test_somebody_who_is_always_faster_is_an_error(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> str:
        raise ConflictError("faster")

    monkeypatch.setattr(type(store.objects), "put_if", never)
    with pytest.raises(ConflictError):
        share_model(store, SLOT, model_of(1))


def test_a_fetcher_answers(store: Store) -> None:
    fetcher = Fetcher(store.url, store.identity)
    assert fetcher.answer(ModelJob(1, SLOT)) == ModelFound(1, None)
    assert fetcher.answer(ModelJob(2, SLOT, model_of(2))) == ModelFound(2, model_of(2))
    assert fetcher.answer(ModelJob(3, SLOT)) == ModelFound(3, model_of(2))
    failed = fetcher.answer(ModelJob(4, SLOT, b"junk"))
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, FormatError)
