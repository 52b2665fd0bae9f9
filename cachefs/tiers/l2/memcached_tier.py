"""Frames in Memcached: one server or several, each frame on the one that its key is closest to.

The only module that knows pymemcache. A frame over a server's item limit is not stored. There is no
login: Memcached is to be reached over a network that only its users have, or with client
certificates. Concurrency: any thread.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from pymemcache.client.base import PooledClient
from pymemcache.client.rendezvous import RendezvousHash
from pymemcache.exceptions import MemcacheError

from cachefs.errors import TierError
from cachefs.model.address import L2Address
from cachefs.tiers.l2.tls import TlsFiles
from cachefs.units import MIB

CONNECT_WAIT_S = 1.0

_ITEM_OVERHEAD_BYTES = 512
"""More than a key of ours, an item's header and its suffix take of the limit."""

_MOST_TTL_S = 30 * 24 * 3600
"""Memcached takes what is longer for a date."""


class MemcachedTier:
    """Frames in Memcached, each at `<prefix><chunk id in hex>`.

    Args:
        address: Where the servers are.
        tls: Certificates, if the address says TLS.
        prefix: Before each key.
        ttl_s: How long a frame lives there, at most 30 days; 0: until it is evicted.
        answer_wait_s: How long to wait for each piece of an answer.
        connections: How many to each server.
    """

    def __init__(
        self,
        address: L2Address,
        tls: TlsFiles,
        prefix: str,
        ttl_s: int,
        answer_wait_s: float,
        connections: int,
    ) -> None:
        self._prefix = prefix
        self._ttl_s = min(ttl_s, _MOST_TTL_S)
        self._limits_bytes: dict[str, int] = {}
        self._clients: dict[str, Any] = {}
        for host, port in address.hosts:
            self._clients[f"{host}:{port}"] = PooledClient(
                (host, port),
                connect_timeout=CONNECT_WAIT_S,
                timeout=answer_wait_s,
                no_delay=True,
                default_noreply=False,
                max_pool_size=connections,
                tls_context=tls.context() if address.tls else None,
            )
        self._ring = RendezvousHash(list(self._clients))

    def get(self, ids: Sequence[bytes], wait_s: float) -> list[bytes | None]:
        """Return the frames of chunks: one `get` of many keys for each server."""
        found: dict[str, bytes] = {}
        with self._errors_mapped():
            for name, keys in self._by_server(ids).items():
                found |= self._clients[name].get_many(keys)
        return [found.get(self._key(identity)) for identity in ids]

    def put(self, frames: Mapping[bytes, bytes], wait_s: float) -> int:
        """Write the frames that are within the servers' item limits."""
        values = {self._key(identity): frame for identity, frame in frames.items()}
        taken = 0
        with self._errors_mapped():
            for name, keys in self._by_server(list(frames)).items():
                most_bytes = self._limit_bytes(name) - _ITEM_OVERHEAD_BYTES
                fitting = {key: values[key] for key in keys if len(values[key]) <= most_bytes}
                if fitting:
                    refused = self._clients[name].set_many(fitting, expire=self._ttl_s)
                    taken += len(fitting) - len(refused)
        return taken

    def touch(self, ids: Sequence[bytes], wait_s: float) -> list[bool]:
        """Return which chunks are here, and give those another TTL."""
        with self._errors_mapped():
            return [
                self._clients[self._ring.get_node(key)].touch(key, expire=self._ttl_s)
                for key in map(self._key, ids)
            ]

    def probe(self, wait_s: float) -> None:
        """Connect to all servers, and see whether an answer then takes at most `wait_s`."""
        with self._errors_mapped():
            for client in self._clients.values():
                client.version()
                begin_s = time.monotonic()
                client.version()
                if time.monotonic() - begin_s > wait_s:
                    raise TierError(f"it answers, but not within {wait_s * 1000:.0f} ms")

    def advice(self) -> str:
        """Return a warning if a server answers `out of memory` instead of evicting (`-M`)."""
        with self._errors_mapped():
            for name, client in self._clients.items():
                evicts = client.stats("settings").get(b"evictions", b"on")
                if evicts in (b"off", "off", 0):
                    return f"memcached {name} runs with -M: once it is full it takes no more frames"
        return ""

    def interrupt(self) -> None:
        """Close the connections that are in use: who reads from them gets an error."""
        for client in self._clients.values():
            for used in list(client.client_pool.used):
                socket = used.sock
                if socket is not None:
                    try:
                        socket.shutdown(2)  # not close: its own thread does that
                    except OSError:
                        pass  # closed meanwhile

    def close(self) -> None:
        """Close all connections."""
        for client in self._clients.values():
            client.close()

    def _limit_bytes(self, name: str) -> int:
        if name not in self._limits_bytes:
            settings = self._clients[name].stats("settings")
            self._limits_bytes[name] = int(settings.get(b"item_size_max", MIB))
        return self._limits_bytes[name]

    def _key(self, identity: bytes) -> str:
        return self._prefix + identity.hex()

    def _by_server(self, ids: Sequence[bytes]) -> dict[str, list[str]]:
        shares: dict[str, list[str]] = {}
        for key in map(self._key, ids):
            shares.setdefault(self._ring.get_node(key), []).append(key)
        return shares

    @contextmanager
    def _errors_mapped(self) -> Iterator[None]:
        try:
            yield
        except (MemcacheError, OSError, ValueError, RuntimeError) as error:
            raise TierError(str(error) or type(error).__name__) from error
