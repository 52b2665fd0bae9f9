"""How long one read of a chunk takes that only S3 has, and how much of that is S3's own.

S3's own: bare boto3 range GETs of the same frames, one after another, through the same delay. A
mount and the bare GETs take turns; each mount is new, and its L1 empty.
"""

import os
import random
import shutil
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
from botocore.config import Config as BotocoreConfig

from bench import clock, mounts
from bench.far_s3 import far_s3
from bench.table import Table
from cachefs.store.layout import pack_key
from cachefs.store.store import open_store
from tests.s3.servers import seaweedfs

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

STORE = "s3://images/tiers"
READ_BYTES = 64 * 1024
DELAYS_MS = (0, 1, 10, 30)
"""Added to each answer; 0 is without the proxy."""

MOST_MORE_MS = 5.0
"""At the 99th percentile, above S3's own."""

WARM_READS = 20
"""Not timed: the first of a fetcher open the store and its connections."""

Range = tuple[str, str]
"""Key and byte range of a frame."""


def choose(image: str, count: int) -> tuple[list[int], list[Range]]:
    """Return places of different chunks that hold data, and where S3 has their frames."""
    store = open_store(STORE)
    manifest = store.manifest(store.image(image)[0].current.manifest)
    records = list(zip(manifest.indexes().tolist(), manifest.records, strict=True))
    offsets, frames = [], []
    for index, record in random.Random(1).sample(records, count):
        begin, frame_bytes = int(record["offset"]), int(record["frame_bytes"])
        key = pack_key(manifest.packs[int(record["pack"])])
        offsets.append(index * manifest.chunk_bytes)
        frames.append((f"tiers/{key}", f"bytes={begin}-{begin + frame_bytes - 1}"))
    return offsets, frames


def bare_client(endpoint: str) -> "S3Client":
    """Return boto3's client, as anybody would make it."""
    config = BotocoreConfig(
        s3={"addressing_style": "path"}, response_checksum_validation="when_required"
    )
    return boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", config=config)


def time_bare_gets(client: "S3Client", frames: list[Range]) -> list[float]:
    """Get frames one after another; returns milliseconds."""
    times_ms = []
    for key, byte_range in frames:
        begin_s = time.perf_counter()
        client.get_object(Bucket="images", Key=key, Range=byte_range)["Body"].read()
        times_ms.append((time.perf_counter() - begin_s) * 1000)
    return times_ms


def time_reads(folder: Path, offsets: list[int]) -> tuple[list[float], float]:
    """Read through a new mount; returns milliseconds, and range GETs a read."""
    with (
        tempfile.TemporaryDirectory(dir=folder) as name,
        mounts.mounted_store(STORE, Path(name), "fetchers=1") as mountpoint,
    ):
        path = mountpoint / "image"
        clock.time_direct_reads(path, offsets[:WARM_READS], READ_BYTES)
        before = mounts.status(mountpoint)["daemon"]["metrics"]["l3_requests"]
        times_us = clock.time_direct_reads(path, offsets[WARM_READS:], READ_BYTES)
        after = mounts.status(mountpoint)["daemon"]["metrics"]["l3_requests"]
    timed = len(offsets) - WARM_READS
    return [one_us / 1000 for one_us in times_us], (after - before) / timed


def percentile(times: list[float], share: float) -> float:
    """Return a percentile."""
    ordered = sorted(times)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def measure(work: Path, image: Path, reads: int, rounds: int) -> Table:
    """Run a server, import the image, and measure all delays in turns."""
    bare: dict[int, list[float]] = {delay: [] for delay in DELAYS_MS}
    cold: dict[int, list[float]] = {delay: [] for delay in DELAYS_MS}
    proxied: list[float] = []
    gets = dict.fromkeys(DELAYS_MS, 0.0)
    with ExitStack() as stack:
        (work / "server").mkdir()
        server = stack.enter_context(seaweedfs(work / "server"))
        far = stack.enter_context(far_s3(server.address))
        os.environ.update(server.environment())
        os.environ["CACHEFS_CATALOG_DIR"] = str(work / "catalogs")
        mounts.run_cachefs("init", STORE)
        mounts.import_image(STORE, image, "image")
        offsets, frames = choose("image", reads)
        direct_client, far_client = bare_client(server.endpoint), bare_client(far.endpoint)
        for client in (direct_client, far_client):
            time_bare_gets(client, frames)  # until here the server has read none of it
        for _ in range(rounds):
            far.set_delay(0)
            proxied += time_bare_gets(far_client, frames[WARM_READS:])
            for delay in DELAYS_MS:
                far.set_delay(delay / 1000)
                client = far_client if delay else direct_client
                os.environ["CACHEFS_S3_ENDPOINT"] = far.endpoint if delay else server.endpoint
                bare[delay] += time_bare_gets(client, frames[WARM_READS:])
                times_ms, gets[delay] = time_reads(work, offsets)
                cold[delay] += times_ms
    shutil.rmtree(work / "server", ignore_errors=True)
    return table_of(bare, cold, gets, proxied)


def table_of(
    bare: dict[int, list[float]],
    cold: dict[int, list[float]],
    gets: dict[int, float],
    proxied: list[float],
) -> Table:
    """Return the table, with a verdict a delay."""
    table = Table(
        "A read of one chunk of 64 KiB that only S3 has",
        [
            "added to S3",
            "S3's own median ms",
            "p99 ms",
            "cachefs median ms",
            "p99 ms",
            "p99 wanted",
            "range GETs a read",
            "reads",
        ],
    )
    for delay, times_ms in cold.items():
        own_ms, p99_ms = percentile(bare[delay], 0.99), percentile(times_ms, 0.99)
        wanted_ms = own_ms + MOST_MORE_MS
        table.add(
            f"{delay} ms" if delay else "nothing",
            f"{percentile(bare[delay], 0.5):.2f}",
            f"{own_ms:.2f}",
            f"{percentile(times_ms, 0.5):.2f}",
            f"{p99_ms:.2f}",
            f"{wanted_ms:.2f}",
            f"{gets[delay]:.2f}",
            str(len(times_ms)),
        )
        verdict = "reached" if p99_ms <= wanted_ms else "MISSED"
        table.notes.append(
            f"{delay} ms added: p99 wanted {wanted_ms:.1f} ms, {verdict} ({p99_ms:.1f})"
        )
    more_ms = [percentile(proxied, share) - percentile(bare[0], share) for share in (0.5, 0.99)]
    table.notes.append(
        f"Of what is added the proxy itself is {more_ms[0]:.2f} ms at the median and"
        f" {more_ms[1]:.2f} ms at p99, for both."
    )
    return table
