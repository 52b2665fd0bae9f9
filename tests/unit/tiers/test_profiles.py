from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cachefs.config import L2Section
from cachefs.errors import ConflictError, CorruptError, FormatError
from cachefs.policy.prefetch.learner import SECTIONS
from cachefs.policy.prefetch.profile import Profile, from_bytes, to_bytes
from cachefs.store.layout import profile_key
from cachefs.store.store import Store
from cachefs.tiers.fetcher import Fetcher
from cachefs.tiers.jobs import Failed, ProfileFound, ProfileJob
from cachefs.tiers.l2.build import open_l2
from cachefs.tiers.profiles import share_profile
from tests.l2_servers import redis_server
from tests.mount.mounts import wait_for
from tests.stores import new_store


def run_of(*keys: int, is_whole: bool = True) -> bytes:
    rows = np.zeros(len(keys), SECTIONS["replay"])
    rows["key"], rows["which"] = keys, 1
    return to_bytes(Profile("a", 4096, {"replay": rows}, 1.0, is_whole))


def known(store: Store) -> dict[int, int]:
    """Return the starts that touched each chunk."""
    data = share_profile(store, "a", b"")
    assert data is not None
    rows = from_bytes(data).sections["replay"]
    return dict(zip(rows["key"].tolist(), rows["which"].tolist(), strict=True))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return new_store(tmp_path)


def test_runs_of_hosts_become_a_consensus(store: Store) -> None:
    assert share_profile(store, "a", b"") is None
    share_profile(store, "a", run_of(1, 2, 3))
    share_profile(store, "a", run_of(2, 3, 4))
    found = known(store)
    assert found == {1: 0b10, 2: 0b11, 3: 0b11, 4: 0b01}


def test_a_run_that_ended_early_is_no_start(store: Store) -> None:
    share_profile(store, "a", run_of(*range(1, 101)))
    share_profile(store, "a", run_of(1, 2, is_whole=False))
    assert set(known(store).values()) == {1}


@pytest.mark.parametrize("junk", [b"", b"junk", b"cachefsP" + bytes(100)])
def test_what_cannot_be_understood_is_none_and_is_replaced(store: Store, junk: bytes) -> None:
    store.objects.put(profile_key("a"), junk)
    assert share_profile(store, "a", b"") is None
    share_profile(store, "a", run_of(7))
    assert set(known(store)) == {7}


def test_of_two_at_once_none_is_lost(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    share_profile(store, "a", run_of(1))
    objects: Any = store.objects
    put_if, rivals = objects.put_if, [run_of(1, 5), run_of(1, 6)]

    def slower(key: str, data: bytes, etag: str | None) -> str:
        if rivals:
            rival = rivals.pop()
            share_profile(store, "a", rival)
        return str(put_if(key, data, etag))

    monkeypatch.setattr(type(objects), "put_if", lambda _, *args: slower(*args))
    share_profile(store, "a", run_of(1, 9))
    assert set(known(store)) == {1, 5, 6, 9}


def test_somebody_who_is_always_faster_is_an_error(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> str:
        raise ConflictError("faster")

    monkeypatch.setattr(type(store.objects), "put_if", never)
    with pytest.raises(ConflictError):
        share_profile(store, "a", run_of(1))


def test_a_run_that_is_none_is_refused(store: Store) -> None:
    with pytest.raises((FormatError, CorruptError)):
        share_profile(store, "a", b"junk")


def test_a_fetcher_answers(store: Store) -> None:
    fetcher = Fetcher(store.url, store.identity)
    answer = fetcher.answer(ProfileJob(5, "a", run_of(1, 2)))
    assert isinstance(answer, ProfileFound)
    assert answer.number == 5
    assert fetcher.answer(ProfileJob(6, "b")) == ProfileFound(6, None)
    assert isinstance(fetcher.answer(ProfileJob(7, "a", b"junk")), Failed)


def test_l2_has_a_copy_that_is_asked_first_and_not_believed(store: Store, tmp_path: Path) -> None:
    with redis_server(tmp_path) as redis:
        l2 = open_l2(L2Section(url=f"redis://127.0.0.1:{redis.port}", timeout_s=5))
        l2.start()
        fetcher = Fetcher(store.url, store.identity, None, l2)
        shared = fetcher.answer(ProfileJob(1, "a", run_of(1, 2)))
        assert isinstance(shared, ProfileFound)
        assert shared.data
        wait_for(redis.frames, "the copy")
        (Path(store.url.removeprefix("file://")) / profile_key("a")).unlink()
        assert fetcher.answer(ProfileJob(2, "a")) == ProfileFound(2, shared.data)
        [key] = redis.frames()
        with redis.client() as client:
            client.set(key, b"junk")
        assert fetcher.answer(ProfileJob(3, "a")) == ProfileFound(3, None)  # as the store says
        redis.stop()
        share_profile(store, "a", run_of(7))
        again = fetcher.answer(ProfileJob(4, "a"))
        assert isinstance(again, ProfileFound)
        assert again.data
