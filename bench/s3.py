"""Cold reads and imports over S3: a SeaweedFS server on loopback.

Beside the cold sequential read, bare range GETs of the same packs by the same number of processes
with the same number of requests in flight: the least that anybody with boto3 has to do; and the
same with what is got decompressed and verified, the least that anybody has to do who wants the
bytes of these packs. Requests
are counted by a proxy, in runs that are not timed. Run it as `make bench-s3`.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import click

from bench import clock, files, mounts
from bench.table import Table, publish, rate, size
from cachefs.codec.frame import decode_frame
from cachefs.config import Config
from cachefs.model.chunk import ChunkRef, chunk_id
from cachefs.store.store import open_store
from cachefs.tiers.ranges import plan_ranges
from cachefs.units import GIB, KIB, MIB
from tests.proxies.http_proxy import HttpProxy
from tests.proxies.proxy import closing
from tests.s3.servers import S3Server, seaweedfs

TARGET = 0.8
RANGE_BYTES = 8 * MIB
READ_BYTES = MIB
RANDOM_READS = 400
STORE = "s3://images/bench"
CHUNK_BYTES = 64 * KIB


Frames = list[tuple[int, int, bytes, int]]
"""Of a range: where each frame begins in it, its length, its chunk id, the chunk's length."""


def whole_ranges(packs: list[tuple[str, int]]) -> list[tuple[str, int, int, Frames]]:
    """Return ranges (key, begin, end) that cover packs, without regard to their frames."""
    return [
        (key, at, min(at + RANGE_BYTES, pack_bytes), [])
        for key, pack_bytes in packs
        for at in range(0, pack_bytes, RANGE_BYTES)
    ]


def frame_ranges(packs: list[tuple[str, int]]) -> list[tuple[str, int, int, Frames]]:
    """Return ranges that cover the frames of packs and cut none, with what is in them."""
    store = open_store(STORE)
    found = []
    for key, _ in packs:
        pack = bytes.fromhex(key.rsplit("/", 1)[1])
        refs = [
            ChunkRef(
                e["id"].tobytes(),
                int(e["plain_bytes"]),
                pack,
                int(e["offset"]),
                int(e["frame_bytes"]),
            )
            for e in store.pack_index(pack)
        ]
        for planned in plan_ranges(refs, 0, RANGE_BYTES):
            frames = [
                (
                    refs[n].offset - planned.offset,
                    refs[n].frame_bytes,
                    refs[n].id,
                    refs[n].plain_bytes,
                )
                for n in planned.members
            ]
            found.append((key, planned.offset, planned.offset + planned.size_bytes, frames))
    return found


def get_all(packs: list[tuple[str, int]], threads: int, *, decodes: bool) -> None:
    """Get packs in ranges with boto3, several at once; decompress and verify them if asked to."""
    import boto3  # noqa: PLC0415 - as the subject does, in its own process
    from botocore.config import Config as BotocoreConfig  # noqa: PLC0415

    config = BotocoreConfig(
        max_pool_connections=threads,
        s3={"addressing_style": "path"},
        response_checksum_validation="when_required",
    )
    endpoint = os.environ["CACHEFS_S3_ENDPOINT"]
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", config=config)

    def get(what: tuple[str, int, int, Frames]) -> None:
        key, begin, end, frames = what
        answer = client.get_object(Bucket="images", Key=key, Range=f"bytes={begin}-{end - 1}")
        data = memoryview(answer["Body"].read())
        for at, frame_bytes, wanted, plain_bytes in frames:
            if chunk_id(decode_frame(data[at : at + frame_bytes], plain_bytes)) != wanted:
                raise RuntimeError("a chunk is not what its id says")

    ranges = frame_ranges(packs) if decodes else whole_ranges(packs)
    print("ready", flush=True)
    sys.stdin.readline()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(get, ranges))


def time_bare_gets(
    packs: list[tuple[str, int]], processes: int, threads: int, *, decodes: bool = False
) -> float:
    """Return the seconds that `processes` take to get all packs, their start not counted."""
    command = [sys.executable, "-m", "bench.s3", "--bare", str(threads)]
    command += ["--decodes"] if decodes else []
    with ExitStack() as stack:
        running = [
            stack.enter_context(
                subprocess.Popen(
                    [*command, json.dumps(packs[number::processes])],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for number in range(processes)
        ]
        for process in running:
            assert process.stdout
            process.stdout.readline()
        begin_s = time.perf_counter()
        for process in running:
            assert process.stdin
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in running:
            if process.wait():
                raise RuntimeError("the bare range GETs failed")
        return time.perf_counter() - begin_s


def read_cold(folder: Path, mount_options: str) -> tuple[float, dict[str, int]]:
    """Mount with an empty cache and read the image; returns the seconds, and the metrics."""
    shutil.rmtree(folder / "cache", ignore_errors=True)
    with mounts.mounted_store(STORE, folder, mount_options) as mountpoint:
        (mountpoint / "image").open("rb").close()  # its manifest is here
        read_s = clock.time_read(mountpoint / "image", READ_BYTES)
        metrics: dict[str, int] = mounts.status(mountpoint)["daemon"]["metrics"]
    return read_s, metrics


def random_reads(folder: Path, image: Path, mount_options: str) -> tuple[list[float], float]:
    """Read 4 KiB at random places of a cold image; returns microseconds, and requests a read."""
    shutil.rmtree(folder / "cache", ignore_errors=True)
    chunks = image.stat().st_size // CHUNK_BYTES
    offsets = [
        n * CHUNK_BYTES + 4 * KIB for n in random.Random(1).sample(range(chunks), RANDOM_READS)
    ]
    with mounts.mounted_store(STORE, folder, mount_options) as mountpoint:
        (mountpoint / "image").open("rb").close()
        before = mounts.status(mountpoint)["daemon"]["metrics"]["l3_requests"]
        times_us = clock.time_direct_reads(mountpoint / "image", offsets, 4 * KIB)
        after = mounts.status(mountpoint)["daemon"]["metrics"]["l3_requests"]
    return times_us, (after - before) / RANDOM_READS


def count_requests(server: S3Server, folder: Path, image: Path, mount_options: str) -> Table:
    """Import and read once more through a proxy that counts."""
    size_gib = image.stat().st_size / GIB
    chunks = image.stat().st_size // CHUNK_BYTES
    table = Table(
        "Requests to S3 for a GiB of image", ["", "cachefs", "of them GET", "an object a chunk"]
    )
    with closing(HttpProxy(server.address)) as proxy:
        os.environ["CACHEFS_S3_ENDPOINT"] = proxy.endpoint
        store = "s3://images/counted"
        mounts.run_cachefs("init", store)
        proxy.script.stop()
        mounts.import_image(store, image, "image")
        imported = proxy.script.calls
        proxy.script.stop()
        with mounts.mounted_store(store, folder / "counted", mount_options) as mountpoint:
            clock.time_read(mountpoint / "image", READ_BYTES)
        read = proxy.script.calls
        os.environ["CACHEFS_S3_ENDPOINT"] = server.endpoint
    for name, calls in (("import", imported), ("cold sequential read", read)):
        gets = sum(call.startswith("GET ") for call in calls)
        table.add(
            name,
            f"{len(calls) / size_gib:.0f}",
            f"{gets / size_gib:.0f}",
            f"{chunks / size_gib:.0f}",
        )
    table.notes.append("An object a chunk: counted, not measured; zero chunks would need none.")
    return table


def measure(server: S3Server, work: Path, image: Path, rounds: int, options: str) -> list[Table]:
    """Measure all."""
    size_bytes = image.stat().st_size
    mounts.run_cachefs("init", STORE)
    mounts.import_image(STORE, image, "image")
    objects = open_store(STORE).objects
    packs = [(f"bench/{info.key}", info.size_bytes) for info in objects.list("packs/")]
    packed_bytes = sum(pack_bytes for _, pack_bytes in packs)
    config = Config()
    processes, threads = config.fetch.fetcher_count(), config.s3.requests_in_flight
    bare_s, decoded_s, cold_s, without_s, requests = [], [], [], [], 0
    for _ in range(rounds):
        bare_s.append(time_bare_gets(packs, processes, threads))
        decoded_s.append(time_bare_gets(packs, processes, threads, decodes=True))
        without_s.append(read_cold(work, ",".join(filter(None, [options, "noprefetch"])))[0])
        read_s, metrics = read_cold(work, options)
        cold_s.append(read_s)
        requests = metrics["l3_requests"]
    bare, cold, decoded = median(bare_s), median(cold_s), median(decoded_s)
    table = Table(
        f"Cold sequential read of {size(size_bytes)} ({size(packed_bytes)} in packs) from S3",
        ["", "seconds", "of the image", "of the packs", "of bare GETs", "of those decoded"],
    )
    for name, seconds in (
        (f"bare range GETs of 8 MiB, {processes} process, {threads} at once", bare),
        ("the same, decompressed and verified", decoded),
        ("cachefs, empty L1", cold),
        ("cachefs -o noprefetch", median(without_s)),
    ):
        speeds = (rate(size_bytes / seconds), rate(packed_bytes / seconds))
        ratios = (f"{bare / seconds:.2f}", f"{decoded / seconds:.2f}")
        table.add(name, f"{seconds:.2f}", *speeds, *ratios)
    verdict = "reached" if bare / cold >= TARGET else "MISSED"
    table.notes.append(f"Target {TARGET} {verdict} ({bare / cold:.2f}); {requests} range GETs.")
    rounds_text = ", ".join(
        f"{b / c:.2f} ({d / c:.2f})" for b, d, c in zip(bare_s, decoded_s, cold_s, strict=True)
    )
    table.notes.append(f"By round, of bare GETs (of those decoded): {rounds_text}.")
    times_us, each = random_reads(work, image, options)
    times_us.sort()
    spread = Table("Random 4 KiB reads, cold", ["", "p50 ms", "p99 ms", "range GETs a read"])
    p50, p99 = times_us[len(times_us) // 2] / 1000, times_us[len(times_us) * 99 // 100] / 1000
    spread.add("cachefs", f"{p50:.2f}", f"{p99:.2f}", f"{each:.2f}")
    (work / "counted").mkdir()
    return [table, spread, count_requests(server, work, image, options)]


@click.command()
@click.option("--image", type=click.Path(path_type=Path, exists=True), help="Read this image.")
@click.option("--size-mib", default=768, show_default=True, help="Size of the image made else.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--options", default="", help="Mount options.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Write the tables here, too.")
@click.option("--noise", is_flag=True, help="An image that no codec makes smaller.")
@click.option("--bare", type=int, hidden=True)
@click.option("--decodes", is_flag=True, hidden=True)
@click.argument("packs", required=False)
def main(
    image: Path | None,
    size_mib: int,
    rounds: int,
    options: str,
    markdown: Path | None,
    noise: bool,
    bare: int | None,
    decodes: bool,
    packs: str | None,
) -> None:
    """Measure cold reads and imports over S3."""
    if bare is not None:
        listed = [(key, pack_bytes) for key, pack_bytes in json.loads(packs or "[]")]
        get_all(listed, bare, decodes=decodes)
        return
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="s3-")))
        build = files.build_noise if noise else files.build_dense_image
        image = image or build(work / "image.img", size_mib * MIB)
        (work / "server").mkdir()
        server = stack.enter_context(seaweedfs(work / "server"))
        os.environ.update(server.environment())
        os.environ["CACHEFS_CATALOG_DIR"] = str(work / "catalogs")
        tables = measure(server, work, image, rounds, options)
    publish(tables, markdown)


if __name__ == "__main__":
    main()
