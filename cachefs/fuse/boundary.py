"""What every handler goes through: errors become errnos, and nothing else ends the mount.

An exception other than FUSEError in a handler ends pyfuse3's main loop, and so all reads of all
guests.
"""

from __future__ import annotations

import errno
import functools
import logging
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import lmdb
import pyfuse3
import trio

from cachefs.errors import CachefsError, NotFoundError, ObjectMissingError
from mount_helper._lane import HOLD_ERROR

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_LOG_INTERVAL_S = 1.0
"""A store that is gone fails thousands of reads; the log gets one line a second and their
number."""

_last_log_s = 0.0
_silent = 0


def handler(
    operation: Callable[P, Coroutine[Any, Any, T]],
) -> Callable[P, Coroutine[Any, Any, T]]:
    """Let only FUSEError out of a handler: NotFoundError is ENOENT, every other failure EIO."""

    @functools.wraps(operation)
    async def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await operation(*args, **kwargs)
        except (pyfuse3.FUSEError, trio.Cancelled):
            raise
        except ObjectMissingError as error:  # the store lacks what an image needs
            _log(f"{operation.__name__}: {error}")
            raise pyfuse3.FUSEError(errno.EIO) from error
        except NotFoundError as error:
            raise pyfuse3.FUSEError(errno.ENOENT) from error
        except CachefsError as error:
            _log(f"{operation.__name__}: {error}")
            raise pyfuse3.FUSEError(errno.EIO) from error
        except trio.TooSlowError as error:
            _log(f"{operation.__name__}: the store did not answer in time")
            raise pyfuse3.FUSEError(errno.EIO) from error
        except lmdb.PanicError:
            # This process can use the index no more: the keeper ends it. The next one answers.
            await trio.sleep_forever()
        except Exception as error:
            logger.exception("%s failed", operation.__name__)
            raise pyfuse3.FUSEError(errno.EIO) from error

    return guarded


@contextmanager
def holding(what: str, *, holds: bool) -> Iterator[None]:
    """Give an operation back to the lane where an outage would end it, and its image holds.

    The lane keeps it, for as long as its reader lives, and asks again.
    """
    try:
        yield
    except (CachefsError, trio.TooSlowError) as error:
        is_outage = isinstance(error, trio.TooSlowError) or error.transient
        if not holds or not is_outage:
            raise
        _log(f"{what} waits for the store: {str(error) or 'it did not answer in time'}")
        raise pyfuse3.FUSEError(HOLD_ERROR) from error


def _log(message: str) -> None:
    global _last_log_s, _silent  # noqa: PLW0603 - one log for one process
    now_s = time.monotonic()
    if now_s - _last_log_s < _LOG_INTERVAL_S:
        _silent += 1
        return
    more = f" (and {_silent} more failures)" if _silent else ""
    _last_log_s, _silent = now_s, 0
    logger.warning("%s%s", message, more)
