"""Models of eviction in the store: one for each size of slots, from hosts for hosts.

What is there is replaced by a model of more trainings, with a conditional write: of two hosts that
do so at once the second looks again. What cannot be understood is replaced; what a newer cachefs
has written is left alone. Nothing there is believed: it is bounded, and checked first.
"""

from __future__ import annotations

from typing import NamedTuple

from cachefs.errors import ConflictError, FormatError, ObjectMissingError
from cachefs.policy.evict.ml.saved import MOST_BYTES, NewerError, trainings_of
from cachefs.store import layout
from cachefs.store.store import Store

_MOST_TRIES = 4


class Shared(NamedTuple):
    """What is in the store: a sound model or None, and why one that is there is not used."""

    data: bytes | None
    problem: str = ""


class _Known(NamedTuple):
    etag: str | None
    data: bytes | None = None
    trainings: int = -1
    problem: str = ""
    is_newer: bool = False


def share_model(store: Store, slot_bytes: int, mine: bytes = b"") -> Shared:
    """Return the model for slots of a size that is in the store.

    With one of `mine` that is written first, if what is there has fewer trainings. Blocks.

    Raises:
        FormatError: mine is no model.
        CachefsError: the store, or somebody else was faster again and again.
    """
    key = layout.model_key(slot_bytes)
    trainings = _of_mine(mine)
    for tries in range(1, _MOST_TRIES + 1):
        known = _known(store, key)
        if known.is_newer or trainings <= known.trainings or not mine:
            return Shared(known.data, known.problem)
        try:
            store.objects.put_if(key, mine, known.etag)
        except ConflictError:
            if tries == _MOST_TRIES:
                raise
        else:
            return Shared(mine, known.problem)
    raise AssertionError("unreachable: the last try returns or raises")


def _of_mine(mine: bytes) -> int:
    try:
        return trainings_of(mine) if mine else -1
    except ValueError as error:
        raise FormatError(f"a model that is to be shared: {error}") from error


def _known(store: Store, key: str) -> _Known:
    """Look at what is there; however long it is, no more is read than a model can have."""
    listed = store.objects.list(layout.MODELS_PREFIX)
    etag = next((info.etag for info in listed if info.key == key), None)
    if etag is None:
        return _Known(None)
    try:
        data, size_bytes = store.objects.get_tail(key, MOST_BYTES)
    except ObjectMissingError:  # removed since
        return _Known(None)
    where = f"the model {store.url}/{key} is passed over"
    if size_bytes > MOST_BYTES:
        return _Known(etag, problem=f"{where}: it has {size_bytes} bytes")
    try:
        return _Known(etag, data, trainings_of(data))
    except NewerError as error:
        return _Known(etag, problem=f"{where} and left alone: {error}", is_newer=True)
    except ValueError as error:
        return _Known(etag, problem=f"{where}: {error}")
