"""Real S3 servers on free loopback ports, in folders of their own, ended by their process ids.

SeaweedFS does what S3 does: signatures, ranges, conditional writes, multipart, paging. rclone's
server is here for what it does otherwise: it has no conditional writes.
"""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import botocore.exceptions
import botocore.session
from botocore.config import Config as BotocoreConfig

from cachefs.config import S3Section
from cachefs.store.s3_settings import S3Settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

ACCESS_KEY, SECRET_KEY = "cachefs-test", "cachefs-test-secret"
BUCKET = "images"
START_WAIT_S = 60.0
STOP_WAIT_S = 30.0
_GRPC_DISTANCE = 10_000
"""SeaweedFS listens on each port plus this, too."""


@dataclass(frozen=True)
class S3Server:
    """A running server with an empty bucket."""

    endpoint: str
    bucket: str
    pid: int

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.endpoint.removeprefix("http://").rpartition(":")
        return host, int(port)

    def environment(self, endpoint: str | None = None) -> dict[str, str]:
        """The variables with which every program of cachefs finds the server."""
        return {
            "CACHEFS_S3_ENDPOINT": endpoint or self.endpoint,
            "CACHEFS_S3_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self) -> "S3Client":
        """A client beside cachefs', to look at what is stored and to damage it."""
        session = botocore.session.Session()
        session.set_credentials(ACCESS_KEY, SECRET_KEY)
        client = session.create_client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            config=BotocoreConfig(
                s3={"addressing_style": "path"},
                retries={"max_attempts": 0},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )
        return cast("S3Client", client)

    def settings(self, **changes: object) -> S3Settings:
        """How cachefs reaches the server; it tries nothing twice, unless told."""
        values = {"endpoint": self.endpoint, "region": "us-east-1", "retries": 0, **changes}
        return S3Settings(**S3Section.model_validate(values).model_dump())


@contextmanager
def seaweedfs(folder: Path) -> Iterator[S3Server]:
    """Run SeaweedFS in an empty folder."""
    master, volume, filer, s3 = _free_ports(4)
    config = folder / "s3.json"
    identity = {
        "name": "cachefs",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "List", "Tagging", "Write"],
    }
    config.write_text(json.dumps({"identities": [identity]}))
    data = folder / "data"
    data.mkdir()
    command = [
        _program("weed"),
        f"-logdir={folder}",
        "server",
        f"-dir={data}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-master.port={master}",
        "-master.volumeSizeLimitMB=1024",
        f"-volume.port={volume}",
        "-volume.max=40",
        "-volume.preStopSeconds=0",
        "-filer",
        f"-filer.port={filer}",
        "-s3",
        f"-s3.port={s3}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        f"-s3.config={config}",
    ]
    with _running(command, folder, f"http://127.0.0.1:{s3}") as server:
        yield server


@contextmanager
def rclone(folder: Path) -> Iterator[S3Server]:
    """Run `rclone serve s3` over an empty folder."""
    (port,) = _free_ports(1)
    data = folder / "data"
    data.mkdir()
    command = [
        _program("rclone"),
        "serve",
        "s3",
        f"--config={os.devnull}",
        f"--addr=127.0.0.1:{port}",
        f"--auth-key={ACCESS_KEY},{SECRET_KEY}",
        str(data),
    ]
    with _running(command, folder, f"http://127.0.0.1:{port}") as server:
        yield server


@contextmanager
def _running(command: list[str], folder: Path, endpoint: str) -> Iterator[S3Server]:
    log = folder / "log"
    with log.open("wb") as output:
        # A session of its own: a Ctrl-C at the terminal ends it after the tests, not before.
        process = subprocess.Popen(
            # And it ends with us, however that is.
            ["setpriv", "--pdeathsig", "KILL", *command],
            cwd=folder,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    server = S3Server(endpoint, BUCKET, process.pid)
    try:
        _make_bucket(server, process, log)
        yield server
    finally:
        _stop(process)


def _make_bucket(server: S3Server, process: subprocess.Popen[bytes], log: Path) -> None:
    client, end_s = server.client(), time.monotonic() + START_WAIT_S
    while True:
        try:
            client.create_bucket(Bucket=server.bucket)
            client.put_object(Bucket=server.bucket, Key="ready", Body=b"1")
            client.delete_object(Bucket=server.bucket, Key="ready")
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
            if "BucketAlready" in str(error):
                return
            said = log.read_text(errors="replace")[-2000:]
            if process.poll() is not None or time.monotonic() > end_s:
                raise RuntimeError(f"the S3 server does not serve: {said}") from error
            time.sleep(0.1)
        else:
            return


def _stop(process: subprocess.Popen[bytes]) -> None:
    # Nothing in its folder is looked at afterwards, and its orderly end takes 20 s.
    process.send_signal(signal.SIGKILL)
    process.wait(STOP_WAIT_S)


def _program(name: str) -> str:
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert found, f"{name} is missing: make setup installs it"
    return found


def _free_ports(count: int) -> list[int]:
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(20_000, 30_000)  # below the kernel's own choices
        if port not in found and _is_free(port) and _is_free(port + _GRPC_DISTANCE):
            found.append(port)
    return found


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
