"""Asks again after an outage, with growing pauses, a given number of times."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from cachefs.errors import CachefsError

_Result = TypeVar("_Result")

_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 5.0

_log = logging.getLogger(__name__)


def with_retries(call: Callable[[], _Result], retries: int) -> _Result:
    """Return what `call` does; after an error that can pass it is called again, so often at most.

    Raises:
        CachefsError: the last call's.
    """
    for number in range(retries):
        try:
            return call()
        except CachefsError as error:
            if not error.transient:
                raise
            pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**number)
            _log.info("%s; trying again", error)
            time.sleep(pause_s * random.uniform(0.5, 1.0))
    return call()
