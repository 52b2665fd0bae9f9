"""Conditional writes, and what to do on a server that ignores the condition.

A server that does not know If-None-Match and If-Match overwrites what it should have refused, and
says that all went well. So it is asked once in a process, before the first such write, with an
object that is nobody's.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable

from cachefs.errors import ConflictError, StoreRefusedError
from cachefs.store.s3.upload import Uploads

PROBES_PREFIX = "probes/"
_OTHER_ETAG = '"00000000000000000000000000000000"'

_log = logging.getLogger(__name__)


class Conditions:
    """Whether a server keeps the conditions of writes."""

    def __init__(
        self, url: str, prefix: str, uploads: Uploads, delete: Callable[[str], None]
    ) -> None:
        self._url = url
        self._prefix = prefix
        self._uploads = uploads
        self._delete = delete
        self._lock = threading.Lock()
        self._are_kept: bool | None = None

    def are_kept(self) -> bool:
        """Return whether the server refuses what a condition forbids; warns if not.

        Raises:
            StoreUnavailableError: it does not answer.
            StoreRefusedError: it takes no writes from us at all.
        """
        with self._lock:
            if self._are_kept is None:
                self._are_kept = self._probe()
                if not self._are_kept:
                    _log.warning(
                        "%s ignores conditional writes: if two hosts change the same image at "
                        "the same moment, one change can get lost; let one host at a time do so",
                        self._url,
                    )
            return self._are_kept

    def _probe(self) -> bool:
        key = f"{self._prefix}{PROBES_PREFIX}{uuid.uuid4().hex}"
        what = f"write {self._url}/{PROBES_PREFIX}"
        self._uploads.put(key, b"1", what)
        try:
            return self._refuses(key, {"IfNoneMatch": "*"}, what) and self._refuses(
                key, {"IfMatch": _OTHER_ETAG}, what
            )
        finally:
            self._delete(key)

    def _refuses(self, key: str, condition: dict[str, str], what: str) -> bool:
        try:
            self._uploads.put(key, b"1", what, condition)
        except ConflictError:
            return True
        except StoreRefusedError:  # 501: it knows that it does not know
            return False
        return False
