"""Frames in Redis: one server, what sentinels say is the master, or a cluster.

The only module that knows redis-py. Concurrency: any thread; the client is made by the first call,
because making one for a cluster or through sentinels asks servers.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.credentials import CredentialProvider
from redis.exceptions import RedisClusterException
from redis.retry import Retry
from redis.sentinel import Sentinel

from cachefs.errors import TierError
from cachefs.model.address import L2Address
from cachefs.tiers.l2.credentials import Credentials
from cachefs.tiers.l2.tls import TlsFiles

CONNECT_WAIT_S = 1.0
"""For a connection with TLS and AUTH: longer than a read waits, which leaves it to the probe."""


class _Provider(CredentialProvider):
    """Gives redis-py what a new connection logs in with."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    def get_credentials(self) -> tuple[str, ...]:  # type: ignore[override] # () is: none
        password = self._credentials.password()
        if not password:
            return ()
        return (self._credentials.user, password) if self._credentials.user else (password,)


class RedisTier:
    """Frames in Redis, each at `<prefix><chunk id in hex>`.

    Args:
        address: Where it is.
        credentials: Of the servers.
        sentinel_credentials: Of the sentinels, if the address has those.
        tls: Certificates, if the address says TLS.
        prefix: Before each key.
        ttl_s: How long a frame lives there; 0: until it is evicted.
        answer_wait_s: How long to wait for each piece of an answer.
    """

    def __init__(
        self,
        address: L2Address,
        credentials: Credentials,
        sentinel_credentials: Credentials,
        tls: TlsFiles,
        prefix: str,
        ttl_s: int,
        answer_wait_s: float,
    ) -> None:
        self._address = address
        self._credentials = credentials
        self._sentinel_credentials = sentinel_credentials
        self._tls = tls
        self._prefix = prefix
        self._ttl_s = ttl_s or None
        self._answer_wait_s = answer_wait_s
        self._lock = threading.Lock()
        self._made: Any = None

    def get(self, ids: Sequence[bytes], wait_s: float) -> list[bytes | None]:
        """Return the frames of chunks: one MGET, or one pipeline for each node of a cluster."""
        keys = self._keys(ids)
        with self._errors_mapped():
            client = self._client()
            if not isinstance(client, RedisCluster):
                return list(client.mget(keys))
            pipeline = client.pipeline()
            for key in keys:
                pipeline.get(key)
            answers = pipeline.execute(raise_on_error=False)
        return self._but_errors(answers)

    def put(self, frames: Mapping[bytes, bytes], wait_s: float) -> int:
        """Write frames in one pipeline."""
        with self._errors_mapped():
            pipeline = self._pipeline()
            for identity, frame in frames.items():
                pipeline.set(self._prefix + identity.hex(), frame, ex=self._ttl_s)
            answers = pipeline.execute(raise_on_error=False)
        return sum(bool(taken) for taken in self._but_errors(answers))

    def touch(self, ids: Sequence[bytes], wait_s: float) -> list[bool]:
        """Return which chunks are here, and give those another TTL."""
        with self._errors_mapped():
            pipeline = self._pipeline()
            for key in self._keys(ids):
                if self._ttl_s:
                    pipeline.expire(key, self._ttl_s)
                else:
                    pipeline.exists(key)
            answers = pipeline.execute(raise_on_error=False)
        return [bool(found) for found in self._but_errors(answers)]

    def probe(self, wait_s: float) -> None:
        """Connect, and see whether an answer then takes at most `wait_s`."""
        with self._errors_mapped():
            self._client().ping()
            begin_s = time.monotonic()
            self._client().ping()
        if time.monotonic() - begin_s > wait_s:
            raise TierError(f"it answers, but not within {wait_s * 1000:.0f} ms")

    def advice(self) -> str:
        """Return a warning if this Redis refuses frames when it is full, or is never full."""
        with self._errors_mapped():
            try:
                found = self._client().info("memory")
            except redis.ResponseError:
                return ""  # the user may not ask: no reason to warn
        if self._address.kind == "cluster" and "maxmemory_policy" not in found:
            found = next(iter(found.values()), {})  # by node
        if found.get("maxmemory_policy") != "noeviction":
            return ""
        return (
            "this Redis has maxmemory-policy noeviction: once it is full it takes no more frames "
            "(without maxmemory it grows until its machine has no memory); set maxmemory, and "
            "maxmemory-policy allkeys-lru"
        )

    def interrupt(self) -> None:
        """Close the connections that are in use: who reads from them gets an error."""
        client = self._made
        if isinstance(client, RedisCluster):
            for node in client.get_nodes():
                if node.redis_connection is not None:
                    node.redis_connection.connection_pool.disconnect(inuse_connections=True)
        elif client is not None:
            client.connection_pool.disconnect(inuse_connections=True)

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            client, self._made = self._made, None
        if client is not None:
            client.close()

    def _keys(self, ids: Sequence[bytes]) -> list[str]:
        return [self._prefix + identity.hex() for identity in ids]

    def _pipeline(self) -> Any:
        client = self._client()
        return (
            client.pipeline()
            if isinstance(client, RedisCluster)
            else client.pipeline(transaction=False)
        )

    def _but_errors(self, answers: list[Any]) -> list[Any]:
        """Return answers with None for those that are errors, unless all are."""
        errors = [answer for answer in answers if isinstance(answer, Exception)]
        if errors and len(errors) == len(answers):
            raise TierError(str(errors[0])) from errors[0]
        return [None if isinstance(answer, Exception) else answer for answer in answers]

    @contextmanager
    def _errors_mapped(self) -> Iterator[None]:
        try:
            yield
        except (redis.RedisError, RedisClusterException, OSError, ValueError) as error:
            raise TierError(str(error) or type(error).__name__) from error

    def _client(self) -> Any:
        with self._lock:
            if self._made is None:
                self._made = self._make()
            return self._made

    def _make(self) -> Any:
        address = self._address
        options: dict[str, Any] = {
            "socket_timeout": self._answer_wait_s,
            "socket_connect_timeout": CONNECT_WAIT_S,
            "socket_keepalive": True,
            "retry": Retry(NoBackoff(), 0),  # repeating is the wrappers' work: they know the time
            "protocol": 2,  # no HELLO before the first command
        }
        tls = self._tls.redis_options() if address.tls else {}
        login: dict[str, Any] = {"credential_provider": _Provider(self._credentials)}
        if address.kind == "cluster":
            nodes = [ClusterNode(host, port) for host, port in address.hosts]
            return RedisCluster(
                startup_nodes=nodes, require_full_coverage=False, **options, **tls, **login
            )
        if address.kind == "sentinel":
            sentinel_login: dict[str, Any] = {
                "credential_provider": _Provider(self._sentinel_credentials)
            }
            sentinels = Sentinel(
                list(address.hosts),
                sentinel_kwargs={**options, **tls, **sentinel_login},
                db=address.database,
                **options,
                **tls,
                **login,
            )
            return sentinels.master_for(address.service)
        if address.path:
            options = {k: v for k, v in options.items() if k != "socket_keepalive"}
            return redis.Redis(unix_socket_path=address.path, **options, **login)
        [(host, port)] = address.hosts
        return redis.Redis(host, port, db=address.database, **options, **tls, **login)
