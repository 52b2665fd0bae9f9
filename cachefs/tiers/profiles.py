"""Profiles in the store and in L2: what hosts have learned of images, for hosts that have not.

A run is added to what is there with a conditional write, so that of two hosts that do so at once
none is lost. What is there and cannot be understood is replaced.
"""

from __future__ import annotations

import logging

from blake3 import blake3

from cachefs.errors import (
    ConflictError,
    CorruptError,
    FormatError,
    ObjectMissingError,
)
from cachefs.policy.prefetch.profile import Profile, from_bytes, to_bytes, with_run
from cachefs.store import layout
from cachefs.store.store import Store

logger = logging.getLogger(__name__)

_MOST_TRIES = 4


def share_profile(store: Store, name: str, run: bytes) -> bytes | None:
    """Return the profile of an image that is in the store, None if there is none.

    With a `run` that is added to it first. Blocks.

    Raises:
        CachefsError: the store, or somebody else was faster again and again.
    """
    key = layout.profile_key(name)
    for tries in range(1, _MOST_TRIES + 1):
        data, known, etag = _known(store, key)
        if not run:
            return data if known is not None else None
        grown = to_bytes(with_run(known, from_bytes(run)))
        try:
            store.objects.put_if(key, grown, etag)
        except ConflictError:
            if tries == _MOST_TRIES:
                raise
        else:
            return grown
    raise AssertionError("unreachable: the last try returns or raises")


def profile_key_in_l2(store_identity: str, name: str) -> bytes:
    """Return the key under which L2 has an image's profile: as long as a chunk id, and none."""
    return blake3(f"profile\0{store_identity}\0{name}".encode()).digest()


def is_profile(data: bytes) -> bool:
    """Return whether bytes are a sound profile."""
    try:
        from_bytes(data)
    except (FormatError, CorruptError):
        return False
    return True


def _known(store: Store, key: str) -> tuple[bytes, Profile | None, str | None]:
    try:
        data, etag = store.objects.get(key)
    except ObjectMissingError:
        return b"", None, None
    try:
        return data, from_bytes(data), etag
    except (FormatError, CorruptError) as error:
        logger.warning("the profile %s in the store is passed over: %s", key, error)
        return data, None, etag
