"""Real Redis and Memcached servers, each on a free loopback port and in a folder of its own."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import redis

START_WAIT_S = 60.0


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    end_s = time.monotonic() + START_WAIT_S
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert process.poll() is None, f"{process.args!r} ended at its start"
        assert time.monotonic() < end_s, f"{process.args!r} does not listen"
        time.sleep(0.01)


def _is_stopped(pid: int) -> bool:
    """Whether all threads of a process have stopped."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    told = [(task / "stat").read_text(encoding="ascii") for task in tasks]
    return all(text.rsplit(")", 1)[1].split()[0] == "T" for text in told)


@dataclass
class Server:
    """A server process that can be stopped and started again on the same port."""

    command: list[str]
    port: int
    folder: Path
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> "Server":
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command, cwd=self.folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        wait_for_port(self.port, self.process)
        return self

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait(START_WAIT_S)
            self.process = None

    def pause(self) -> None:
        """Let it hang: connections are accepted by the kernel, and nothing is answered."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        end_s = time.monotonic() + START_WAIT_S
        while not _is_stopped(self.process.pid):  # each thread stops when it runs next
            assert time.monotonic() < end_s, f"{self.process.args!r} does not stop"
            time.sleep(0.001)

    def go_on(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)


class Redis(Server):
    """A redis-server."""

    def client(self, **options: object) -> redis.Redis:
        return redis.Redis("127.0.0.1", self.port, protocol=2, **options)  # type: ignore[arg-type]

    def frames(self, prefix: str = "cachefs:") -> dict[str, bytes]:
        """Return all frames by key."""
        with self.client() as client:
            keys = sorted(key.decode() for key in client.scan_iter(f"{prefix}*", count=1000))
            return dict(zip(keys, client.mget(keys), strict=True)) if keys else {}

    def configure(self, **settings: str | int) -> None:
        with self.client() as client:
            for name, value in settings.items():
                client.config_set(name.replace("_", "-"), value)


@contextmanager
def redis_server(folder: Path, *options: str) -> Iterator[Redis]:
    """Run a Redis of at most 64 MiB that evicts, and writes nothing to the disk."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    listens = [] if "--tls-port" in options else ["--port", str(port)]
    command = ["redis-server", "--bind", "127.0.0.1", *listens, "--save", "", "--dir", str(folder)]
    command += ["--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru", *options]
    command = [str(port) if word == "PORT" else word for word in command]
    server = Redis(command, port, folder).start()
    assert isinstance(server, Redis)
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def memcached_server(folder: Path, *options: str) -> Iterator[Server]:
    """Run a Memcached."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = ["memcached", "-l", "127.0.0.1", "-p", str(port), "-U", "0", "-m", "64"]
    if os.geteuid() == 0:
        command += ["-u", "nobody"]
    server = Server([*command, *options], port, folder).start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def redis_cluster(folder: Path) -> Iterator[list[Redis]]:
    """Run a cluster of three masters."""
    with ExitStack() as stack:
        options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "30000")
        nodes = [
            stack.enter_context(
                # A bus port of its own: the default, port + 10000, may not exist.
                redis_server(folder / str(n), *options, "--cluster-port", str(free_port()))
            )
            for n in range(3)
        ]
        subprocess.run(
            [
                *("redis-cli", "--cluster", "create"),
                *(f"127.0.0.1:{node.port}" for node in nodes),
                "--cluster-yes",
            ],
            check=True,
            capture_output=True,
            timeout=60,
        )
        for node in nodes:
            _wait_for_slots(node)
        yield nodes


def _wait_for_slots(node: Redis) -> None:
    end_s = time.monotonic() + START_WAIT_S
    with node.client() as client:
        while client.execute_command("CLUSTER", "INFO").find(b"cluster_state:ok") < 0:
            assert time.monotonic() < end_s, "the cluster does not come together"
            time.sleep(0.05)


@contextmanager
def redis_sentinel(folder: Path, master: Redis, service: str) -> Iterator[Server]:
    """Run one sentinel that watches a master."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    settings = folder / "sentinel.conf"
    settings.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {folder}\n"
        f"sentinel monitor {service} 127.0.0.1 {master.port} 1\n"
        f"sentinel down-after-milliseconds {service} 30000\n"  # it is to be slow, not replaced
        f"sentinel failover-timeout {service} 2000\n"
    )
    command = ["redis-server", str(settings), "--sentinel"]
    server = Server(command, port, folder).start()
    try:
        yield server
    finally:
        server.stop()


def make_certificates(folder: Path) -> tuple[Path, Path, Path]:
    """Make an authority and a key for 127.0.0.1 that it signed; returns authority, cert and key."""
    folder.mkdir(parents=True, exist_ok=True)
    authority, authority_key = folder / "ca.crt", folder / "ca.key"
    cert, key, request = folder / "server.crt", folder / "server.key", folder / "server.csr"
    extensions = folder / "extensions"
    extensions.write_text("subjectAltName=IP:127.0.0.1\n")
    assert shutil.which("openssl")
    ec = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    for command in (
        ["req", "-x509", *ec, "-keyout", authority_key, "-out", authority, "-subj", "/CN=test"],
        ["req", *ec, "-keyout", key, "-out", request, "-subj", "/CN=127.0.0.1"],
        [
            *("x509", "-req", "-in", request, "-CA", authority, "-CAkey", authority_key),
            *("-CAcreateserial", "-out", cert, "-days", "2", "-extfile", extensions),
        ],
    ):
        subprocess.run(["openssl", *map(str, command)], check=True, capture_output=True, timeout=60)
    return authority, cert, key
