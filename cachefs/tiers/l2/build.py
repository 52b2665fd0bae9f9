"""Puts an L2 together from its settings: the server's tier within the wrappers."""

from __future__ import annotations

from collections.abc import Callable

from cachefs.codec.compression import parse_compression
from cachefs.config import L2Section
from cachefs.errors import UsageError
from cachefs.model.address import L2Address, parse_l2_address
from cachefs.tiers.breaker import Breaker
from cachefs.tiers.l2.background import Background
from cachefs.tiers.l2.bounded import Bounded, Hedged
from cachefs.tiers.l2.breaker import CircuitBreaker, Guarded
from cachefs.tiers.l2.counts import Counts
from cachefs.tiers.l2.credentials import Credentials
from cachefs.tiers.l2.l2 import L2
from cachefs.tiers.l2.retry import Retrying
from cachefs.tiers.l2.seam import FrameTier
from cachefs.tiers.l2.tls import TlsFiles
from cachefs.tiers.l2.workers import Workers

PASSWORD_VARIABLE = "CACHEFS_L2_PASSWORD"
SENTINEL_PASSWORD_VARIABLE = "CACHEFS_L2_SENTINEL_PASSWORD"

_WRITE_ANSWER_WAIT_S = 1.0
"""Nobody waits for a write."""

_DEMOTED = "zstd:1"
"""For frames that are made here, when no codec is configured: the fastest of zstd."""


def open_l2(settings: L2Section) -> L2:
    """Return an L2 that is not started yet; nothing is connected.

    Raises:
        UsageError: the library of the server is not installed, or the codec does not exist.
        FormatError: the library of the codec is not installed.
        OSError: a certificate cannot be read.
    """
    address = parse_l2_address(settings.url)
    server = open_tier(address, settings, settings.timeout_s)
    writer = open_tier(address, settings, _WRITE_ANSWER_WAIT_S)
    compression = parse_compression(settings.codec or _DEMOTED, settings.min_ratio)
    workers = Workers(settings.requests)
    hedged = Hedged(server, workers) if settings.hedge else None
    breaker, writing_breaker = _breaker(settings), _breaker(settings)
    reading = CircuitBreaker(
        Retrying(hedged or Bounded(server, workers), settings.retries), breaker, calls_probe=False
    )
    writing = CircuitBreaker(writer, writing_breaker, calls_probe=True)

    def background(counts: Counts, report: Callable[[], None]) -> Background:
        return Background(
            Guarded(reading, breaker),
            Guarded(writing, writing_breaker),
            settings.backfill_queue_bytes,
            settings.timeout_s,
            compression.encode,
            bool(settings.codec),
            counts,
            report,
        )

    return L2(reading, breaker, settings.timeout_s, background, hedged)


def open_tier(address: L2Address, settings: L2Section, answer_wait_s: float) -> FrameTier:
    """Return the tier of a server, without wrappers.

    Raises:
        UsageError: its library is not installed.
        OSError: a certificate cannot be read.
    """
    tls = TlsFiles(settings.ca_file, settings.cert_file, settings.key_file)
    prefix, ttl_s = settings.key_prefix, settings.ttl_s
    # Each library only where it is used: a fetcher starts for every mount.
    if address.kind == "memcached":
        try:
            from cachefs.tiers.l2.memcached_tier import MemcachedTier  # noqa: PLC0415
        except ModuleNotFoundError as error:
            raise UsageError(
                "an L2 in Memcached needs pymemcache: pip install 'cachefs[memcached]'"
            ) from error
        connections = settings.requests + 1  # and the probe's
        return MemcachedTier(address, tls, prefix, ttl_s, answer_wait_s, connections)
    from cachefs.tiers.l2.redis_tier import RedisTier  # noqa: PLC0415

    login = Credentials(settings.user, settings.password_file, PASSWORD_VARIABLE)
    sentinel_login = Credentials(
        settings.sentinel_user, settings.sentinel_password_file, SENTINEL_PASSWORD_VARIABLE
    )
    return RedisTier(address, login, sentinel_login, tls, prefix, ttl_s, answer_wait_s)


def _breaker(settings: L2Section) -> Breaker:
    return Breaker(
        settings.breaker_failures, settings.breaker_pause_s, settings.breaker_longest_pause_s
    )
