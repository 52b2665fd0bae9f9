"""A TCP proxy on loopback that does to a connection what networks and servers do.

It knows no protocol: what it does, it does to the bytes of answers.
"""

import contextlib
import ctypes
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

_PIECE_BYTES = 65536

Change = Callable[[bytes], bytes]


@dataclass
class Faults:
    """What happens now; a test sets it, each connection looks at it for every piece of bytes.

    `refuse`: connections are closed as soon as they are made. `hang`: nothing passes, in neither
    direction. `delay_s`: each piece of an answer waits so long. `reset_after_bytes`: so much of
    answers passes on each connection, then it is reset. `drip`: answers pass byte by byte, with
    pauses. `change`: what becomes of each piece of an answer.
    """

    refuse: bool = False
    hang: bool = False
    delay_s: float = 0.0
    reset_after_bytes: int | None = None
    drip: bool = False
    change: Change | None = None


@dataclass
class Proxy:
    """Listens on `port`, passes everything to `target_port`."""

    target_port: int
    faults: Faults = field(default_factory=Faults)
    connections: int = 0
    port: int = 0

    def heal(self) -> None:
        self.faults = Faults()


@contextlib.contextmanager
def proxied(target_port: int) -> Iterator[Proxy]:
    """Run a proxy in threads of the test; all are gone at the end."""
    proxy = Proxy(target_port)
    stop = threading.Event()
    open_sockets: list[socket.socket] = []
    threads: list[threading.Thread] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy.port = listener.getsockname()[1]
        listener.settimeout(0.1)
        accepting = threading.Thread(
            target=_accept, args=(listener, proxy, stop, open_sockets, threads)
        )
        accepting.start()
        try:
            yield proxy
        finally:
            stop.set()
            accepting.join()
            for end in open_sockets:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()
            for end in open_sockets:
                end.close()


def _accept(
    listener: socket.socket,
    proxy: Proxy,
    stop: threading.Event,
    open_sockets: list[socket.socket],
    threads: list[threading.Thread],
) -> None:
    while not stop.is_set():
        try:
            client, _ = listener.accept()
        except TimeoutError:
            continue
        proxy.connections += 1
        open_sockets.append(client)
        if proxy.faults.refuse:
            _reset(client)
            continue
        try:
            server = socket.create_connection(("127.0.0.1", proxy.target_port), 5)
        except OSError:
            _reset(client)
            continue
        for end in (client, server):
            end.settimeout(None)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        open_sockets.append(server)
        for source, target, is_answer in ((client, server, False), (server, client, True)):
            arguments = (source, target, proxy, stop, is_answer)
            threads.append(threading.Thread(target=_pass_on, args=arguments))
            threads[-1].start()


def _pass_on(
    source: socket.socket,
    target: socket.socket,
    proxy: Proxy,
    stop: threading.Event,
    is_answer: bool,
) -> None:
    passed_bytes = 0
    try:
        while piece := source.recv(_PIECE_BYTES):
            while (proxy.faults.hang or proxy.faults.refuse) and not stop.is_set():
                if proxy.faults.refuse:
                    raise ConnectionError("refused now")
                time.sleep(0.005)
            faults = proxy.faults
            if is_answer and faults.change:
                piece = faults.change(piece)
            if is_answer and faults.delay_s:
                stop.wait(faults.delay_s)
            limit = faults.reset_after_bytes
            if is_answer and limit is not None and passed_bytes + len(piece) > limit:
                target.sendall(piece[: max(0, limit - passed_bytes)])
                time.sleep(0.01)  # so that what passed has arrived before the reset
                _reset(target)
                return
            for part in _parts(piece, is_dripping=is_answer and faults.drip):
                target.sendall(part)
                if len(part) < len(piece) and stop.wait(0.02):
                    return
            passed_bytes += len(piece)
    except OSError:
        pass  # one end closed, as ends do
    finally:
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def _parts(piece: bytes, *, is_dripping: bool) -> list[bytes]:
    return [bytes([byte]) for byte in piece] if is_dripping else [piece]


def _reset(end: socket.socket) -> None:
    """Send RST, also while another thread reads from the socket."""
    nowhere = struct.pack("hxxxxxxxxxxxxxx", socket.AF_UNSPEC)
    ctypes.CDLL(None).connect(end.fileno(), nowhere, len(nowhere))
