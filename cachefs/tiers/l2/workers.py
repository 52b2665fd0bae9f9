"""Threads in which calls to a tier run, so that whoever waits can leave when the time is over.

A client library's timeouts are for one `recv` each: a server that drips bytes, a slow name server
or a TLS handshake would hold a read for longer than it may wait. Concurrency: any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any


class Workers:
    """Runs at most `limit` calls at once; each has a thread that waits for the next one."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._calls: SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._busy = 0

    @property
    def busy(self) -> int:
        """Calls that run now, those that nobody waits for any more included."""
        return self._busy

    def start(self, call: Callable[[], Any]) -> Future[Any] | None:
        """Start a call and return its future; None if as many as may are running."""
        with self._lock:
            if self._busy >= self._limit:
                return None
            self._busy += 1
            if self._threads < self._busy:
                self._threads += 1
                # Not one that the end of the process waits for: it may be stuck in a server.
                threading.Thread(target=self._work, name="l2-call", daemon=True).start()
        future: Future[Any] = Future()
        self._calls.put((call, future))
        return future

    def _work(self) -> None:
        while True:
            call, future = self._calls.get()
            error: BaseException | None = None
            result: Any = None
            try:
                result = call()
            except BaseException as failure:  # noqa: BLE001 - it belongs to who waits for the call
                error = failure
            # First free, then told: whoever is told may start another call at once.
            with self._lock:
                self._busy -= 1
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
            del call, future, result, error
