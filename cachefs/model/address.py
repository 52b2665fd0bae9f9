"""Where an L2 is: its address as a value, and how people write it. Passwords are no part of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from cachefs.errors import UsageError

Kind = Literal["redis", "sentinel", "cluster", "memcached"]

_SCHEMES: dict[str, tuple[Kind, bool, int]] = {
    "redis": ("redis", False, 6379),
    "rediss": ("redis", True, 6379),
    "redis+unix": ("redis", False, 0),
    "redis+sentinel": ("sentinel", False, 26379),
    "rediss+sentinel": ("sentinel", True, 26379),
    "redis+cluster": ("cluster", False, 6379),
    "rediss+cluster": ("cluster", True, 6379),
    "memcached": ("memcached", False, 11211),
    "memcacheds": ("memcached", True, 11211),
}
"""Scheme -> kind of server, whether with TLS, its usual port."""

_HOST = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([^\s\[\]:@/,]+))(?::(\d{1,5}))?")
_MAX_PORT = 65535


@dataclass(frozen=True, slots=True)
class L2Address:
    """An L2 server, or the servers of one L2.

    `path` is a Unix socket (then there are no hosts); `service` the name that sentinels know.
    """

    text: str
    kind: Kind
    tls: bool
    hosts: tuple[tuple[str, int], ...]
    path: str = ""
    service: str = ""
    database: int = 0


def parse_l2_address(text: str) -> L2Address:
    """Return the address that a URL means.

    `redis://host:port/database`, `redis+unix:///path`, `redis+sentinel://host,host/service/database`,
    `redis+cluster://host,host`, `memcached://host,host`; with TLS `rediss...`, `memcacheds`.

    Raises:
        UsageError: it means none. The message never has what stands before an `@`.
    """
    scheme, separator, rest = text.partition("://")
    if not separator or scheme not in _SCHEMES:
        raise UsageError(f"an L2 address begins with one of {', '.join(_SCHEMES)} and ://")
    if "@" in rest:
        raise UsageError(
            "an L2 address has no user or password: give l2.user, and l2.password_file or "
            "CACHEFS_L2_PASSWORD"
        )
    kind, tls, port = _SCHEMES[scheme]
    if scheme == "redis+unix":
        if not rest.startswith("/"):
            raise UsageError("a Unix socket is written redis+unix:///path/to/socket")
        return L2Address(text, kind, tls, (), path=rest)
    places, _, tail = rest.partition("/")
    hosts = tuple(_host(place, port) for place in places.split(","))
    if kind == "redis" and len(hosts) > 1:
        raise UsageError("redis:// takes one host; take redis+cluster:// or redis+sentinel://")
    service = ""
    if kind == "sentinel":
        service, _, tail = tail.partition("/")
        if not service:
            raise UsageError("sentinels need a service: redis+sentinel://host,host/service")
    return L2Address(text, kind, tls, hosts, service=service, database=_database(kind, tail))


def _host(place: str, port: int) -> tuple[str, int]:
    match = _HOST.fullmatch(place)
    found = int(match[3]) if match and match[3] else port
    if not match or not 0 < found <= _MAX_PORT:
        raise UsageError(f"'{place}' is not a host, or a host and a port as in cache1:6379")
    return match[1] or match[2], found


def _database(kind: Kind, tail: str) -> int:
    if not tail:
        return 0
    if kind in ("cluster", "memcached") or not tail.isdecimal():
        raise UsageError(f"'/{tail}' at the end of an L2 address is no database number")
    return int(tail)
