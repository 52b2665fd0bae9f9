"""Ways to ask S3 for a range, and what each costs: the table of docs/decisions/0030.

Run it as `make bench-s3-clients`. With awscrt installed it measures boto3's CRT client, too.
"""

import importlib.util
import io
import os
import random
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import click
import urllib3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config as BotocoreConfig

from bench.table import Table, publish, rate
from cachefs.store.s3.connection import Connection
from cachefs.store.s3.range_reader import read_range
from cachefs.units import KIB, MIB, format_size
from tests.s3.servers import ACCESS_KEY, SECRET_KEY, S3Server, seaweedfs

OBJECTS = 4
OBJECT_BYTES = 16 * MIB
SIZES = {4 * KIB: 120, 64 * KIB: 120, MIB: 32, 4 * MIB: 16, 8 * MIB: 8}
THREADS = (1, 4, 8)

Get = Callable[[int, int, int], int]
"""Reads a range of the object with this number; returns how many bytes came."""


def ways(server: S3Server) -> dict[str, Get]:
    """Return the ways by name."""
    client = server.client()
    connection = Connection(server.settings(), server.bucket)
    urls = [
        client.generate_presigned_url(
            "get_object", Params={"Bucket": server.bucket, "Key": f"packs/{number}"}
        )
        for number in range(OBJECTS)
    ]
    pool = urllib3.PoolManager(maxsize=max(THREADS))

    def by_client(number: int, offset: int, size_bytes: int) -> int:
        answer = client.get_object(
            Bucket=server.bucket,
            Key=f"packs/{number}",
            Range=f"bytes={offset}-{offset + size_bytes - 1}",
        )
        return len(answer["Body"].read())

    def signed(number: int, offset: int, size_bytes: int) -> int:
        return len(read_range(connection, f"packs/{number}", offset, size_bytes, "read"))

    def presigned(number: int, offset: int, size_bytes: int) -> int:
        headers = {"Range": f"bytes={offset}-{offset + size_bytes - 1}"}
        return len(pool.request("GET", urls[number], headers=headers).data)

    return {
        "get_object of the client": by_client,
        "signed here (cachefs)": signed,
        "presigned once, urllib3": presigned,
    }


def measure(get: Get, size_bytes: int, count: int, threads: int) -> tuple[float, float]:
    """Return seconds, and seconds of processor, of one request among `count`."""
    choice = random.Random(size_bytes)
    offsets = [choice.randrange(OBJECT_BYTES - size_bytes + 1) for _ in range(count)]

    def one(position: int) -> None:
        if get(position % OBJECTS, offsets[position], size_bytes) != size_bytes:
            raise RuntimeError("another length came")

    one(0)
    cpu_s, begin_s = time.process_time(), time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(one, range(count)))
    return (time.perf_counter() - begin_s) / count, (time.process_time() - cpu_s) / count


def whole_packs(server: S3Server) -> Table:
    """Measure whole objects with boto3's transfer manager, with its classic and its CRT client."""
    table = Table(
        f"Whole objects of {format_size(OBJECT_BYTES)}, 16 of them", ["", "speed", "CPU ms"]
    )
    client = boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        region_name="us-east-1",
        config=BotocoreConfig(s3={"addressing_style": "path"}),
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
    )
    kinds = ["classic", *(["crt"] if importlib.util.find_spec("awscrt") else [])]
    for kind in kinds:
        config = TransferConfig(preferred_transfer_client=kind)
        cpu_s, begin_s = time.process_time(), time.perf_counter()
        try:
            for number in range(16):
                target = io.BytesIO()
                client.download_fileobj(
                    server.bucket, f"packs/{number % OBJECTS}", target, Config=config
                )
                if len(target.getbuffer()) != OBJECT_BYTES:
                    raise RuntimeError("another length came")
        except Exception as error:  # noqa: BLE001 - awscrt has errors of its own
            table.notes.append(f"boto3, {kind}, failed: {error}")
            continue
        wall_s, cpu_s = time.perf_counter() - begin_s, time.process_time() - cpu_s
        table.add(f"boto3, {kind}", rate(16 * OBJECT_BYTES / wall_s), f"{cpu_s / 16 * 1000:.1f}")
    return table


@click.command()
@click.option("--markdown", type=click.Path(path_type=Path), help="Write the tables here, too.")
def main(markdown: Path | None) -> None:
    """Measure ways to ask for a range."""
    table = Table(
        "Range GETs from one process", ["", "threads", "range", "a second", "speed", "CPU ms"]
    )
    with tempfile.TemporaryDirectory(prefix="s3-") as folder, seaweedfs(Path(folder)) as server:
        client = server.client()
        os.environ.update(server.environment())
        for number in range(OBJECTS):
            body = os.urandom(OBJECT_BYTES)
            client.put_object(Bucket=server.bucket, Key=f"packs/{number}", Body=body)
        for size_bytes, count in SIZES.items():
            for threads in THREADS:
                for name, get in ways(server).items():
                    wall_s, cpu_s = measure(get, size_bytes, count, threads)
                    table.add(
                        name,
                        str(threads),
                        format_size(size_bytes),
                        f"{1 / wall_s:.0f}",
                        rate(size_bytes / wall_s),
                        f"{cpu_s * 1000:.2f}",
                    )
        whole = whole_packs(server)
    publish([table, whole], markdown)


if __name__ == "__main__":
    main()
