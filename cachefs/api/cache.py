"""The cache as programs see it. Thread-safe: any thread may call any method at any time."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from math import inf
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import trio

from cachefs.api.engine import Engine, Parts
from cachefs.api.images import Images
from cachefs.api.values import Cut
from cachefs.config import Config, validated
from cachefs.errors import UsageError
from cachefs.index.values import Value
from cachefs.ingest.importer import DEFAULT_CHUNK_BYTES
from cachefs.model.chunk import check_chunk_bytes, chunk_id
from cachefs.store.s3_settings import S3Settings
from cachefs.store.store import open_store
from cachefs.units import parse_size

Key = str | bytes
"""A text and its bytes in UTF-8 are different keys."""

_MOST_KEY_BYTES = 4096
_MOST_KEYS = 1_000_000
_LARGEST_SHARE = 4
"""A value may take a fourth of L1: room for it has to be made while others are held."""


class Cache:
    """Values by key, and images of a store, through the tiers that a mount has.

    A value lies in L1 in chunks, and in L2 as well where there is one; never in the store. It is a
    cache: what was set may be gone at any time, because L1 needed the room, the disk failed, or
    its time was over; `get` says None then. What `get` returns is always, byte for byte, what was
    set: each chunk is named by its content, and one that is not what its name says is missing.

    Keys are known to this cache folder only; two hosts that share an L2 share chunks, not keys.
    """

    def __init__(self, engine: Engine, config: Config, chunk_bytes: int) -> None:
        self._engine = engine
        self._chunk_bytes = chunk_bytes
        self._most_bytes = config.l1.quota_bytes // _LARGEST_SHARE
        self._deadline_s = config.fetch.read_deadline_s

    @classmethod
    def open(
        cls,
        cache_dir: str | Path,
        store: str = "",
        *,
        quota: str | int | None = None,
        l2: str = "",
        chunk_size: str | int = DEFAULT_CHUNK_BYTES,
        most_keys: int = _MOST_KEYS,
        config: Config | None = None,
    ) -> Cache:
        """Open a cache folder, or make it; nobody else may use it meanwhile, a mount neither.

        Args:
            cache_dir: The folder. It belongs to one store, or to none, for ever.
            store: URL of the store whose images are to be read; empty: values only.
            quota: What L1 may take on the disk, in bytes or as in "2GiB"; None: 10 GiB.
            l2: URL of Redis or Memcached; empty: none.
            chunk_size: Of values: a power of two from 4KiB to 4MiB.
            most_keys: So many keys are remembered; beyond them any may be forgotten.
            config: All other settings, as a mount has them; `cache_dir`, and `store`, `quota` and
                `l2` where they are given, go before it.

        Raises:
            CachefsError: the folder is in use or another store's, the disk does not let us, the
                store does not answer, or a setting cannot be.

        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> with Cache.open(folder, quota="64MiB") as cache:
        ...     cache.set("greeting", b"hello")
        ...     cache.get("greeting")
        True
        b'hello'
        >>> with Cache.open(folder, quota="64MiB") as cache:  # it is still there
        ...     cache.get("greeting")
        b'hello'
        """
        chunk_bytes = check_chunk_bytes(_bytes(chunk_size))
        whole = _configuration(config or Config(), Path(cache_dir), store, quota, l2)
        if whole.eviction.policy == "ml":  # it learns in a mount only
            eviction = whole.eviction.model_copy(update={"policy": "2q"})
            whole = whole.model_copy(update={"eviction": eviction})
        opened = None
        if whole.store.url:
            opened = open_store(whole.store.url, S3Settings(**whole.s3.model_dump()))
        engine = Engine(whole, opened, most_keys)
        engine.start()
        return cls(engine, whole, chunk_bytes)

    def close(self) -> None:
        """Bring all to the disk and end; a second call does nothing."""
        self._engine.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # ---- values ----

    def get(self, key: Key) -> bytes | None:
        """Return the value of a key, None if it has none (any more).

        Raises:
            CacheError: the cache is closed.
            UsageError: this cannot be a key.
        """
        place = _place(key)
        return self._engine.run(lambda parts: parts.values.get(place))

    def set(self, key: Key, value: bytes | bytearray | memoryview, ttl_s: float = inf) -> bool:
        """Keep a value, for `ttl_s` seconds at most; whether there was room for it.

        Raises:
            CacheError: the cache is closed.
            UsageError: this cannot be a key, a time or a value: the largest takes a fourth of L1.

        >>> cache.set(b"a key of bytes", b"value" * 100_000, ttl_s=3600)
        True
        >>> cache.set("gone at once", b"value", ttl_s=0)
        True
        >>> cache.get("gone at once") is None
        True
        """
        place, cut = _place(key), self._cut(value, ttl_s)
        return self._engine.run(lambda parts: parts.values.set(place, cut))

    def delete(self, key: Key) -> bool:
        """Forget a key; whether it had a value. Its chunks stay until L1 needs the room.

        >>> cache.set("one", b"1"), cache.delete("one"), cache.delete("one")
        (True, True, False)
        """
        place = _place(key)

        async def run(parts: Parts) -> bool:
            return parts.values.delete(place)

        return self._engine.run(run)

    def exists(self, key: Key) -> bool:
        """Whether a key has a value in L1; with an L2: or may have one there, which is not asked.

        >>> cache.exists("one"), cache.set("one", b"1"), cache.exists("one")
        (False, True, True)
        """
        place = _place(key)

        async def run(parts: Parts) -> bool:
            return parts.values.exists(place)

        return self._engine.run(run)

    def __contains__(self, key: Key) -> bool:
        return self.exists(key)

    def get_multi(self, keys: Iterable[Key]) -> dict[Key, bytes]:
        """Return the values of those keys that have one, read side by side.

        >>> cache.set_multi({"a": b"1", "b": b"2"})
        {'a': True, 'b': True}
        >>> cache.get_multi(["a", "b", "c"])
        {'a': b'1', 'b': b'2'}
        """
        places = {key: _place(key) for key in keys}

        async def run(parts: Parts) -> dict[Key, bytes]:
            found: dict[Key, bytes | None] = dict.fromkeys(places)

            async def get(key: Key, place: bytes) -> None:
                found[key] = await parts.values.get(place)

            async with trio.open_nursery() as nursery:
                for key, place in places.items():
                    nursery.start_soon(get, key, place)
            return {key: value for key, value in found.items() if value is not None}

        return self._engine.run(run)

    def set_multi(
        self, values: Mapping[Key, bytes | bytearray | memoryview], ttl_s: float = inf
    ) -> dict[Key, bool]:
        """Keep values; for each whether there was room for it."""
        cuts = {key: (_place(key), self._cut(value, ttl_s)) for key, value in values.items()}

        async def run(parts: Parts) -> dict[Key, bool]:
            return {key: await parts.values.set(*at) for key, at in cuts.items()}

        return self._engine.run(run)

    def delete_multi(self, keys: Iterable[Key]) -> int:
        """Forget keys; how many of them had a value."""
        places = [_place(key) for key in keys]

        async def run(parts: Parts) -> int:
            return sum(map(parts.values.delete, places))

        return self._engine.run(run)

    def prefetch(self, keys: Iterable[Key]) -> int:
        """Start to bring from L2 what L1 lacks of these values, and do not wait.

        Returns how many chunks that is; 0 without an L2.
        """
        places = [_place(key) for key in keys]

        async def run(parts: Parts) -> int:
            deadline_s = trio.current_time() + self._deadline_s
            return sum(parts.values.prefetch(place, deadline_s) for place in places)

        return self._engine.run(run)

    # ---- images ----

    def read(self, image: str, offset: int, size_bytes: int) -> bytes:
        """Return bytes of an image of the store, through all tiers; fewer at its end.

        A name means the version that was the newest when this cache first read it; `flush` lets it
        look again.

        Raises:
            NotFoundError: there is no such image.
            CachefsError: its bytes can't be had; the message says why.
            UsageError: this cache was opened without a store.
        """
        if offset < 0 or size_bytes < 0:
            raise UsageError(f"{size_bytes} bytes from {offset} on: neither can be negative")
        return self._engine.run(lambda parts: _images(parts).read(image, offset, size_bytes))

    def warmup(self, image: str, offset: int = 0, size_bytes: int | None = None) -> int:
        """Bring an image, or a part of it, into L1; return its size when all of it is there.

        Raises:
            CachefsError: as `read`.
        """
        if offset < 0 or (size_bytes or 0) < 0:
            raise UsageError(f"{size_bytes} bytes from {offset} on: neither can be negative")
        return self._engine.run(lambda parts: _images(parts).warm_up(image, offset, size_bytes))

    # ---- all of it ----

    def stats(self) -> dict[str, Any]:
        """Return figures: of values, of L1, and the metrics that a mount has, by name.

        >>> sorted(cache.stats())
        ['hits', 'keys', 'l1', 'metrics', 'misses']
        """

        async def run(parts: Parts) -> dict[str, Any]:
            l1 = parts.opened.l1
            return {
                "keys": len(parts.values),
                "hits": parts.values.hits,
                "misses": parts.values.misses,
                "l1": {
                    "resident_bytes": l1.resident_bytes,
                    "resident_chunks": l1.resident_chunks,
                    "quota_bytes": l1.quota_bytes,
                    "policy": parts.opened.policy,
                },
                "metrics": parts.metrics.to_dict(),
            }

        return self._engine.run(run)

    def flush(self) -> None:
        """Return when all that was set is on the disk, and L2's queue is empty (10 s at most).

        Without it a crash costs what was set in the last tenth of a second; a `close` none.

        Raises:
            CacheError: the disk takes nothing, or the cache is closed.
        """

        async def run(parts: Parts) -> None:
            await parts.flush()
            if parts.images:
                parts.images.forget()

        self._engine.run(run)

    def _cut(self, value: bytes | bytearray | memoryview, ttl_s: float) -> Cut:
        """Cut a value into chunks and name them, in the caller's thread."""
        data = memoryview(bytes(value))
        if len(data) > self._most_bytes:
            raise UsageError(
                f"a value of {len(data)} bytes: the largest of this cache has {self._most_bytes}"
            )
        if not ttl_s >= 0:
            raise UsageError(f"ttl_s = {ttl_s}: it has to be 0 or more")
        step = self._chunk_bytes
        parts = [data[at : at + step] for at in range(0, len(data), step)]
        ids = tuple(chunk_id(part) for part in parts)
        cut = Value(time.time() + ttl_s, len(data), step, ids)
        return Cut(cut, cut.refs(), parts)


def _images(parts: Parts) -> Images:
    if parts.images is None:
        raise UsageError("this cache was opened without a store: it has no images")
    return parts.images


def _place(key: Key) -> bytes:
    """Return a key as the index has it: its kind, and its bytes."""
    if isinstance(key, str):
        place = b"s" + key.encode("utf-8", "surrogatepass")
    elif isinstance(key, bytes):
        place = b"b" + key
    else:
        raise UsageError(f"a key is text or bytes, not {type(key).__name__}")
    if len(place) > _MOST_KEY_BYTES:
        raise UsageError(f"a key of {len(place) - 1} bytes: at most {_MOST_KEY_BYTES - 1} can be")
    return place


def _bytes(size: str | int) -> int:
    return parse_size(size) if isinstance(size, str) else size


def _configuration(
    config: Config, cache_dir: Path, store: str, quota: str | int | None, l2: str
) -> Config:
    values = config.model_dump()
    values["l1"]["dir"] = str(cache_dir.absolute())
    if quota is not None:
        values["l1"]["quota_bytes"] = quota
    if store:
        values["store"]["url"] = store
    if l2:
        values["l2"]["url"] = l2
    return validated(values, "Cache.open")
