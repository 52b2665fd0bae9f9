"""An S3 server that is farther away: a proxy before it, in a process of its own.

It adds a time to each answer, lets all answers together pass at most so fast, and counts the
requests. In the bench's own process its threads would
share an interpreter with the client that is measured beside the subject.
"""

import multiprocessing
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection

from tests.proxies.faults import Fault
from tests.proxies.http_proxy import HttpProxy
from tests.proxies.proxy import closing

_END_WAIT_S = 15.0


@dataclass(frozen=True)
class FarS3:
    """The proxy, as its user sees it."""

    endpoint: str
    _line: Connection

    def set_delay(self, delay_s: float, bytes_per_s: float | None = None) -> None:
        """From now on each answer takes so much longer; the count begins anew.

        Args:
            delay_s: Before the first byte of an answer.
            bytes_per_s: Of all answers together; None: as fast as they come.
        """
        self._line.send((delay_s, bytes_per_s))
        self._line.recv()

    def requests(self) -> int:
        """Return how many requests of any kind there were since the delay was set."""
        self._line.send(None)
        count: int = self._line.recv()
        return count


@contextmanager
def far_s3(upstream: tuple[str, int]) -> Iterator[FarS3]:
    """Run the proxy; it adds nothing until it is told to."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_run, args=(upstream, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        yield FarS3(ours.recv(), ours)
    finally:
        ours.close()
        process.join(_END_WAIT_S)


def _run(upstream: tuple[str, int], line: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C at the terminal is the bench's
    with closing(HttpProxy(upstream)) as proxy:
        line.send(proxy.endpoint)
        while True:
            try:
                told: tuple[float, float | None] | None = line.recv()
            except EOFError:
                return
            if told is None:
                line.send(len(proxy.script.calls))
            else:
                proxy.script.play_always(Fault(delay_s=told[0]))
                proxy.bytes_per_s = told[1]
                line.send(None)
