"""Cold reads and imports over S3: a SeaweedFS server on loopback, and behind a link.

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
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import click

from bench import clock, files, mounts
from bench.cold import COPIES, touch_memory
from bench.far_s3 import far_s3
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
FAR_DELAY_S, FAR_BYTES_PER_S = 0.03, 100e6
"""A store in the same country, on a link that others use as well."""
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
    command = [sys.executable, "-m", "bench.s3", "--bare", str(threads), str(decodes)]
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


@dataclass(frozen=True)
class Subject:
    """A way to read the image through a mount.

    Attributes:
        name: For people.
        options: Of the mount.
        time_read: Reads a file from end to end in blocks of so many bytes; returns the seconds.
    """

    name: str
    options: str
    time_read: Callable[[Path, int], float]


SUBJECTS = (
    Subject("cachefs, empty L1", "", clock.time_read),
    Subject("the same with O_DIRECT, one read at a time", "", clock.time_direct_read),
    Subject("cachefs -o noprefetch", "noprefetch", clock.time_read),
)


def read_cold(folder: Path, subject: Subject, mount_options: str, image_bytes: int) -> float:
    """Mount with an empty cache and read the image; returns the seconds."""
    shutil.rmtree(folder / "cache", ignore_errors=True)
    os.sync()  # what import and earlier rounds wrote is not this read's to write back
    options = ",".join(filter(None, [mount_options, subject.options]))
    with mounts.mounted_store(STORE, folder, options) as mountpoint:
        (mountpoint / "image").open("rb").close()  # its manifest is here
        touch_memory(COPIES * image_bytes)
        return subject.time_read(mountpoint / "image", READ_BYTES)


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


def measure_streams(work: Path, image: Path, rounds: int, options: str, where: str) -> Table:
    """Read the image in sequence, in turns with bare GETs of its packs."""
    size_bytes = image.stat().st_size
    objects = open_store(STORE).objects
    packs = [(f"bench/{info.key}", info.size_bytes) for info in objects.list("packs/")]
    packed_bytes = sum(pack_bytes for _, pack_bytes in packs)
    config = Config()
    processes, threads = config.fetch.fetcher_count(), config.s3.requests_in_flight
    bare = f"bare range GETs of 8 MiB, {processes} process, {threads} at once"
    decoded = "the same, decompressed and verified"
    seconds: dict[str, list[float]] = {bare: [], decoded: []}
    seconds |= {subject.name: [] for subject in SUBJECTS}
    for _ in range(rounds):
        seconds[bare].append(time_bare_gets(packs, processes, threads))
        seconds[decoded].append(time_bare_gets(packs, processes, threads, decodes=True))
        for subject in SUBJECTS:
            seconds[subject.name].append(read_cold(work, subject, options, size_bytes))
    table = Table(
        f"Cold sequential read of {size(size_bytes)} ({size(packed_bytes)} in packs) from S3 "
        + where,
        ["", "seconds", "of the image", "of the packs", "of bare GETs", "of those decoded"],
    )
    for name, times_s in seconds.items():
        middle_s = median(times_s)
        ratios = [_ratios(seconds[base], times_s) for base in (bare, decoded)]
        speeds = (rate(size_bytes / middle_s), rate(packed_bytes / middle_s))
        table.add(name, f"{middle_s:.2f}", *speeds, *(f"{median(each):.2f}" for each in ratios))
        if name in {subject.name for subject in SUBJECTS}:
            verdict = "reached" if median(ratios[0]) >= TARGET else "MISSED"
            by_round = ", ".join(f"{a:.2f} ({b:.2f})" for a, b in zip(*ratios, strict=True))
            table.notes.append(
                f"{name}: target {TARGET} {verdict}; by round, of bare GETs (of those decoded): "
                + by_round
            )
    return table


def _ratios(base_s: list[float], times_s: list[float]) -> list[float]:
    return [base / mine for base, mine in zip(base_s, times_s, strict=True)]


def measure(
    server: S3Server, work: Path, image: Path, rounds: int, options: str, places: Sequence[str]
) -> list[Table]:
    """Measure all."""
    mounts.run_cachefs("init", STORE)
    mounts.import_image(STORE, image, "image")
    tables = []
    if "near" in places:
        tables.append(measure_streams(work, image, rounds, options, "on loopback"))
        times_us, each = random_reads(work, image, options)
        times_us.sort()
        spread = Table("Random 4 KiB reads, cold", ["", "p50 ms", "p99 ms", "range GETs a read"])
        p50, p99 = times_us[len(times_us) // 2] / 1000, times_us[len(times_us) * 99 // 100] / 1000
        spread.add("cachefs", f"{p50:.2f}", f"{p99:.2f}", f"{each:.2f}")
        (work / "counted").mkdir()
        tables += [spread, count_requests(server, work, image, options)]
    if "far" in places:
        with far_s3(server.address) as far:
            far.set_delay(FAR_DELAY_S, FAR_BYTES_PER_S)
            os.environ["CACHEFS_S3_ENDPOINT"] = far.endpoint
            where = f"behind {FAR_BYTES_PER_S / 1e6:.0f} MB/s and {FAR_DELAY_S * 1000:.0f} ms"
            tables.append(measure_streams(work, image, rounds, options, where))
            os.environ["CACHEFS_S3_ENDPOINT"] = server.endpoint
    return tables


@click.command()
@click.option("--image", type=click.Path(path_type=Path, exists=True), help="Read this image.")
@click.option("--size-mib", default=768, show_default=True, help="Size of the image made else.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--options", default="", help="Mount options.")
@click.option(
    "--place",
    type=click.Choice(["near", "far"]),
    multiple=True,
    default=["near", "far"],
    help="S3 on loopback, and behind a link of 100 MB/s and 30 ms; both by default.",
)
@click.option("--markdown", type=click.Path(path_type=Path), help="Write the tables here, too.")
@click.option("--noise", is_flag=True, help="An image that no codec makes smaller.")
@click.option("--bare", type=(int, bool), hidden=True)
@click.argument("packs", required=False)
def main(
    image: Path | None,
    size_mib: int,
    rounds: int,
    options: str,
    place: Sequence[str],
    markdown: Path | None,
    noise: bool,
    bare: tuple[int, bool] | None,
    packs: str | None,
) -> None:
    """Measure cold reads and imports over S3."""
    if bare is not None:
        listed = [(key, pack_bytes) for key, pack_bytes in json.loads(packs or "[]")]
        get_all(listed, bare[0], decodes=bare[1])
        return
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="s3-")))
        build = files.build_noise if noise else files.build_full_image
        image = image or build(work / "image.img", size_mib * MIB)
        (work / "server").mkdir()
        server = stack.enter_context(seaweedfs(work / "server"))
        os.environ.update(server.environment())
        os.environ["CACHEFS_CATALOG_DIR"] = str(work / "catalogs")
        tables = measure(server, work, image, rounds, options, place)
    publish(tables, markdown)


if __name__ == "__main__":
    main()
