"""A store that lets nobody write: reads go on, sharing says so once, and goes on when it may."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Protocol

import pytest

from cachefs.errors import ObjectMissingError
from cachefs.store.layout import model_key, profile_key
from cachefs.store.store import Store, create_store
from tests.mount.learning import CHUNK, DATA, OPTIONS, read_until
from tests.mount.mounts import Mounts, read_direct, wait_for
from tests.mount.samples import store_path
from tests.proxies.faults import Fault
from tests.proxies.http_proxy import HttpProxy
from tests.proxies.proxy import closing
from tests.s3.servers import S3Server
from tests.stores import import_bytes, new_store

pytestmark = [pytest.mark.mount, pytest.mark.slow]

NO_PROFILES, NO_MODELS = "profiles are not shared", "models are not shared"
PROFILES_AGAIN, MODELS_AGAIN = "store takes profiles again", "store takes models for chunks"
REFUSED_S, MOST_TRIES = 12, 8
"""To write, in that time: at once and after 5 and 10 s more, of either kind, and one in reserve."""


class Refusal(Protocol):
    """A store whose writes can be forbidden."""

    store: Store
    options: str
    reason: str

    def begin(self) -> None: ...

    def end(self) -> None: ...

    def writes(self) -> int:
        """Return how many were tried meanwhile."""
        ...


@dataclass
class ReadOnlyFolder:
    """A file system that root cannot write to, either."""

    store: Store
    options: str = OPTIONS
    reason: str = "Read-only file system"

    def begin(self) -> None:
        mount_command("-o", "remount,bind,ro", store_path(self.store))

    def end(self) -> None:
        mount_command("-o", "remount,bind,rw", store_path(self.store))

    def writes(self) -> int:
        return 0  # nobody counts them


@dataclass
class NoRightToPut:
    store: Store
    proxy: HttpProxy
    options: str
    reason: str = "403 AccessDenied"

    def begin(self) -> None:
        fault = Fault("status", status=403, code="AccessDenied")
        self.proxy.script.play_always(fault, lambda call: call.startswith("PUT "))

    def end(self) -> None:
        self.proxy.script.stop()

    def writes(self) -> int:
        return self.proxy.script.matched


@contextmanager
def read_only_folder(folder: Path) -> Iterator[ReadOnlyFolder]:
    store = new_store(folder)
    path = store_path(store)
    mount_command("--bind", path, path)
    try:
        yield ReadOnlyFolder(store)
    finally:
        subprocess.run(["umount", "-l", path], check=True, timeout=60)


@contextmanager
def no_right_to_put(server: S3Server, url: str) -> Iterator[NoRightToPut]:
    with closing(HttpProxy(server.address)) as proxy:
        options = f"{OPTIONS},s3_endpoint={proxy.endpoint}"
        yield NoRightToPut(create_store(url), proxy, options)


def mount_command(*arguments: str | Path) -> None:
    subprocess.run(["mount", *arguments], check=True, timeout=60)


def is_stored(store: Store, key: str) -> bool:
    try:
        return bool(store.objects.get(key)[0])
    except ObjectMissingError:
        return False


@pytest.fixture(params=["a read-only folder", "S3 without the right to put"])
def refusal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Refusal]:
    if request.param.startswith("S3"):
        server, url = request.getfixturevalue("s3"), request.getfixturevalue("s3_url")
        made: AbstractContextManager[Refusal] = no_right_to_put(server, url)
    else:
        made = read_only_folder(tmp_path)
    with made as found:
        import_bytes(found.store, DATA, chunk_bytes=CHUNK)
        yield found


@pytest.mark.timeout(400)
def test_a_store_that_refuses_writes_is_told_of_once_and_used_when_it_takes_them(
    mounts: Mounts, refusal: Refusal
) -> None:
    refusal.begin()
    mount = mounts(refusal.store.url).start(refusal.options)
    choice = Random(3)
    began_s = time.monotonic()
    read_until(mount, choice, lambda: NO_MODELS in mount.log())
    wait_for(lambda: NO_PROFILES in mount.log(), "the word about profiles")
    read_until(mount, choice, lambda: time.monotonic() - began_s > REFUSED_S)
    log = mount.log()
    assert (log.count(NO_MODELS), log.count(NO_PROFILES)) == (1, 1), log
    told = [line for line in log.splitlines() if NO_MODELS in line or NO_PROFILES in line]
    for line, (key, setting) in zip(
        sorted(told, key=lambda line: NO_PROFILES in line),
        [("models/", "eviction.share_models"), ("profiles/", "prefetch.share_profiles")],
        strict=True,
    ):
        assert refusal.reason in line
        assert f"write to {key} there, or set {setting} = false" in line
    assert refusal.writes() <= MOST_TRIES
    assert read_direct(mount / "image") == DATA

    refusal.end()
    keys = (model_key(CHUNK), profile_key("image"))
    read_until(mount, choice, lambda: all(is_stored(refusal.store, key) for key in keys))
    for word in (PROFILES_AGAIN, MODELS_AGAIN):
        wait_for(lambda: word in mount.log(), word)  # noqa: B023
        assert mount.log().count(word) == 1
    metrics = mount.metrics()
    assert metrics["read_errors"] == metrics["fetcher_deaths"] == 0
