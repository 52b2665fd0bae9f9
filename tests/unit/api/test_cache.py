"""The cache as programs use it."""

import doctest
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cachefs.api import Cache, Key
from cachefs.api import cache as module
from cachefs.config import Config, EvictionSection, L1Section, L2Section
from cachefs.errors import CacheError, ConfigError, ConflictError, NotFoundError, UsageError
from cachefs.units import KIB, MIB
from tests.l2_servers import Redis, redis_server
from tests.stores import flip, import_bytes, new_store

QUOTA = "16MiB"
CHUNK = 64 * KIB


def noise(size_bytes: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size_bytes)


def opened(
    folder: Path, store: str = "", l2: str = "", l2_timeout_s: float = 5, **settings: object
) -> Cache:
    """A cache that does not mind a disk that is nearly full."""
    l1 = L1Section(free_floor_bytes=0, **settings)  # type: ignore[arg-type]
    config = Config(l1=l1, l2=L2Section(timeout_s=l2_timeout_s))
    return Cache.open(folder / "cache", store, quota=QUOTA, l2=l2, config=config)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    with opened(tmp_path) as cache:
        yield cache
        metrics = cache.stats()["metrics"]
        gauges = ("waiting_reads", "flights", "pinned_slots", "l2_queued_bytes")
        assert {name: metrics[name] for name in gauges} == dict.fromkeys(gauges, 0)


def test_the_examples_of_the_documentation(cache: Cache) -> None:
    result = doctest.testmod(module, extraglobs={"cache": cache})
    assert (result.failed, result.attempted >= 12) == (0, True)


@pytest.mark.parametrize("size_bytes", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * MIB + 5])
def test_a_value_comes_back(cache: Cache, size_bytes: int) -> None:
    value = noise(size_bytes)
    assert cache.set("key", value)
    assert cache.get("key") == value
    assert cache.get(b"key") is None  # another kind of key
    assert "key" in cache


def test_values_of_zeros_and_equal_chunks(cache: Cache) -> None:
    value = bytes(3 * CHUNK) + noise(CHUNK) * 2
    assert cache.set("zeros", value)
    assert cache.get("zeros") == value
    assert cache.stats()["l1"]["resident_chunks"] == 2
    assert cache.set("again", bytearray(value))
    assert cache.stats()["l1"]["resident_chunks"] == 2


def test_a_value_takes_the_place_of_another(cache: Cache) -> None:
    cache.set("key", b"first", ttl_s=0.05)
    cache.set("key", b"second")
    time.sleep(0.1)
    assert cache.get("key") == b"second"
    assert cache.delete("key")
    assert cache.get("key") is None
    assert not cache.exists("key")
    assert not cache.delete("key")


def test_a_value_ends_with_its_time(cache: Cache) -> None:
    cache.set("key", b"value", ttl_s=2)
    assert cache.get("key") == b"value"
    time.sleep(2.05)
    assert cache.get("key") is None
    assert not cache.exists("key")


def test_what_was_set_is_there_after_a_close(tmp_path: Path) -> None:
    value = noise(MIB + 1)
    with opened(tmp_path) as cache:
        cache.set("key", value)
        cache.set("short", b"x", ttl_s=0.01)
        cache.set("deleted", b"x")
        cache.delete("deleted")
    time.sleep(0.02)
    with opened(tmp_path) as cache:
        assert cache.get_multi(["key", "short", "deleted"]) == {"key": value}
        assert cache.stats()["keys"] >= 1


def test_many_at_once(cache: Cache) -> None:
    values: dict[Key, bytes] = {f"key-{n}": noise(1000 * n, n) for n in range(50)}
    assert cache.set_multi(values) == dict.fromkeys(values, True)
    assert cache.get_multi([*values, "other", b"other"]) == values
    assert cache.delete_multi(["key-1", "key-2", "other"]) == 2
    assert len(cache.get_multi(values)) == 48


def test_more_than_l1_holds(cache: Cache) -> None:
    """What is gone is gone as a whole; what is there is right."""
    for number in range(60):
        assert cache.set(f"key-{number}", noise(MIB, number))
    found = {n: cache.get(f"key-{n}") for n in range(60)}
    there = [n for n, value in found.items() if value is not None]
    assert 4 <= len(there) < 20
    assert all(found[n] == noise(MIB, n) for n in there)
    assert 59 in there


@pytest.mark.parametrize(
    ("key", "value", "ttl_s"),
    [
        ("key", bytes(5 * MIB), 1),
        ("key", b"", -1),
        ("key", b"", float("nan")),
        ("k" * 5000, b"", 1),
        (5, b"", 1),
    ],
)
def test_what_cannot_be_is_refused(cache: Cache, key: Key, value: bytes, ttl_s: float) -> None:
    with pytest.raises(UsageError):
        cache.set(key, value, ttl_s)


def test_keys_are_bounded(tmp_path: Path) -> None:
    l1 = L1Section(free_floor_bytes=0)
    with Cache.open(tmp_path / "c", quota=QUOTA, most_keys=100, config=Config(l1=l1)) as cache:
        for number in range(180):
            cache.set(f"key-{number}", b"%d" % number)
        cache.flush()
        assert cache.stats()["keys"] == 100
        found = cache.get_multi(f"key-{n}" for n in range(180))
        assert len(found) == 100
        assert all(value == str(key).removeprefix("key-").encode() for key, value in found.items())


def test_threads_share_a_cache(cache: Cache) -> None:
    wrong: list[str] = []

    def work(seed: int) -> None:
        chosen = random.Random(seed)
        for _ in range(60):
            number = chosen.randrange(20)
            key, value = f"key-{number}", noise(chosen.choice([10, CHUNK, 300_000]), number)
            if chosen.random() < 0.4:
                cache.set(key, value)
            elif chosen.random() < 0.2:
                cache.delete(key)
            else:
                found = cache.get(key)
                if found is not None and found != noise(len(found), number):
                    wrong.append(key)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert cache.stats()["hits"] > 20


def test_damage_on_the_disk_is_a_miss_and_heals(tmp_path: Path) -> None:
    with opened(tmp_path, verify="read") as cache:
        cache.set("key", noise(4 * CHUNK))
        cache.flush()
        [segment] = (tmp_path / "cache/segments").iterdir()
        for at in range(0, segment.stat().st_size, CHUNK):
            flip(segment, at + 7)
        assert cache.get("key") is None
        assert cache.stats()["metrics"]["l1_corrupt"] == 1
        assert cache.set("key", noise(4 * CHUNK))
        assert cache.stats()["metrics"]["l1_corrupt"] >= 1
        cache.get("key")


def test_a_row_that_is_damaged_is_none(tmp_path: Path) -> None:
    with opened(tmp_path) as cache:
        cache.set("key", noise(CHUNK))
    index = tmp_path / "cache/index.lmdb/data.mdb"
    data = bytearray(index.read_bytes())
    at = data.index(b"skey")
    data[at - 12] ^= 1
    index.write_bytes(data)
    with opened(tmp_path) as cache:
        assert cache.get("key") is None


SETTER = """
import sys, random
from cachefs.api import Cache
from cachefs.config import Config, L1Section
with Cache.open(sys.argv[1], quota="16MiB", config=Config(l1=L1Section(free_floor_bytes=0))) as c:
    number = 0
    while True:
        number += 1
        c.set(f"key-{number % 20}", random.Random(number % 20).randbytes(300_000 + number % 20))
        print(number, flush=True)
"""


def test_a_program_that_is_killed_leaves_right_values_or_none(tmp_path: Path) -> None:
    found = 0
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", SETTER, str(tmp_path / "cache")], stdout=subprocess.PIPE
        )
        assert process.stdout
        with process.stdout:
            while int(process.stdout.readline()) < 20:
                pass
            time.sleep(0.5)
            process.send_signal(signal.SIGKILL)
            process.wait()
        with opened(tmp_path) as cache:
            for number in range(20):
                value = cache.get(f"key-{number}")
                found += value is not None
                assert value is None or value == noise(300_000 + number, number)
    assert found > 10


def test_a_folder_has_one_user_and_one_store(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    with opened(tmp_path), pytest.raises(ConflictError, match="in use"):
        opened(tmp_path)
    with pytest.raises(Exception, match="another store"):
        opened(tmp_path, store.url)


def test_after_the_end(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    cache.close()
    cache.close()
    with pytest.raises(CacheError, match="closed"):
        cache.get("key")


def test_settings_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"l1.quota_bytes = 5.*1MiB to 64TiB"):
        Cache.open(tmp_path, quota=5)
    with pytest.raises(UsageError, match="chunk size"):
        Cache.open(tmp_path, chunk_size=5000)
    with Cache.open(tmp_path / "ml", config=Config(eviction=EvictionSection(policy="ml"))) as cache:
        assert cache.stats()["l1"]["policy"] == "2q"  # the one that learns is for mounts
    with pytest.raises(UsageError, match="without a store"), opened(tmp_path) as cache:
        cache.read("image", 0, 1)


def test_images_of_a_store(tmp_path: Path) -> None:
    store, data = new_store(tmp_path), noise(3 * MIB + 77)
    import_bytes(store, data, "folder/image", CHUNK)
    with opened(tmp_path, store.url) as cache:
        assert cache.read("folder/image", 100, 5000) == data[100:5100]
        assert cache.read("folder/image", len(data) - 5, 5000) == data[-5:]
        assert cache.warmup("folder/image") == len(data)
        chunks = -(-len(data) // CHUNK)
        assert cache.read("folder/image", 0, len(data)) == data
        metrics = cache.stats()["metrics"]
        assert metrics["l3_chunks"] - metrics["unkept_chunks"] == chunks  # each was kept once
        assert cache.set("key", data[: 2 * CHUNK])  # shares the image's chunks
        assert cache.stats()["l1"]["resident_chunks"] == chunks
        assert cache.warmup("folder/image", MIB, 10) == 10
        with pytest.raises(NotFoundError):
            cache.read("nothing", 0, 1)
        import_bytes(store, b"new", "folder/image", CHUNK)
        assert cache.read("folder/image", 0, 5) == data[:5]
        cache.flush()
        assert cache.read("folder/image", 0, 5) == b"new"


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    with redis_server(tmp_path / "redis") as running:
        yield running


def test_what_l1_gave_up_comes_back_from_l2(tmp_path: Path, redis: Redis) -> None:
    url = f"redis://127.0.0.1:{redis.port}"
    with opened(tmp_path, l2=url) as cache:
        for number in range(40):
            assert cache.set(f"key-{number}", noise(MIB, number))
            cache.flush()
        redis.configure(maxmemory="256mb")  # what is being sent counts
        assert len(redis.frames()) == 40 * MIB // CHUNK
        asked = cache.prefetch(f"key-{n}" for n in range(5))
        assert asked > 0
        found = {number: cache.get(f"key-{number}") for number in range(40)}
        assert all(value == noise(MIB, number) for number, value in found.items())
        assert cache.stats()["metrics"]["l2_chunks"] > 20 * MIB // CHUNK


def test_without_l2_what_was_there_is_a_miss(tmp_path: Path, redis: Redis) -> None:
    with opened(tmp_path, l2=f"redis://127.0.0.1:{redis.port}", l2_timeout_s=0.05) as cache:
        for number in range(40):
            cache.set(f"key-{number}", noise(MIB, number))
        assert redis.process
        os.kill(redis.process.pid, signal.SIGSTOP)
        try:
            begun_s = time.monotonic()
            found = [cache.get(f"key-{number}") for number in range(40)]
            assert time.monotonic() - begun_s < 10
        finally:
            os.kill(redis.process.pid, signal.SIGCONT)
        assert None in found
        assert all(value in {None, noise(MIB, n)} for n, value in enumerate(found))
