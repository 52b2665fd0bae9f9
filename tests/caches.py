"""Opened caches, pools that a test answers, and images to read: the parts of the read path."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from cachefs.config import Config, EvictionSection, L1Section, PolicyName
from cachefs.daemon.cache import Cache, open_cache
from cachefs.index.folder import open_folder
from cachefs.index.manifest_table import ManifestTable, PageCache, write_table
from cachefs.metrics import Metrics
from cachefs.model.chunk import ChunkRef, chunk_id
from cachefs.store.store import Store
from cachefs.tiers.fetcher import Fetcher
from cachefs.tiers.jobs import Answer, ChunkJob, ChunksDone, Fetched, Job, Outcome
from cachefs.tiers.pool import FetcherPool
from cachefs.units import MIB

IDENTITY = "a store"


@contextmanager
def opened_cache(
    path: Path,
    quota_bytes: int = 16 * MIB,
    free_floor_bytes: int = 0,
    *,
    clean: bool = True,
    policy: PolicyName = "lru",
) -> Iterator[Cache]:
    """Open a cache folder; at the end either stop cleanly or drop everything as a kill would."""
    folder = open_folder(path, IDENTITY, wait_s=0)
    config = Config(
        l1=L1Section(quota_bytes=quota_bytes, free_floor_bytes=free_floor_bytes),
        eviction=EvictionSection(policy=policy),
    )
    cache = open_cache(folder, config, Metrics())
    closed = False
    try:
        yield cache
        closed = clean
        if clean:
            trio.run(cache.close)
    finally:
        if not closed:
            cache.l1.close()
            cache.database.close()
        folder.close()


class HandPool(FetcherPool):
    """A pool without processes: jobs lie in `jobs` until the test answers them."""

    def __init__(self, fetcher: Fetcher | None = None) -> None:
        super().__init__("", "", 1, -1, 60, Metrics())
        self.fetcher = fetcher
        self.jobs: list[tuple[Job, int, Callable[[Answer], None]]] = []
        self.landed: dict[int, Callable[[Sequence[int]], None]] = {}

    def submit(
        self,
        job: Job,
        priority: int,
        done: Callable[[Answer], None],
        landed: Callable[[Sequence[int]], None] | None = None,
    ) -> None:
        self.jobs.append((job, priority, done))
        if landed is not None:
            self.landed[job.number] = landed

    def chunk_jobs(self) -> list[ChunkJob]:
        return [job for job, _, _ in self.jobs if isinstance(job, ChunkJob)]

    def answer(self, answer: Answer | None = None) -> Job:
        """Answer the first job: as told, or as a real fetcher would."""
        job, _, done = self.jobs.pop(0)
        if answer is None:
            assert self.fetcher is not None
            answer = self.fetcher.answer(job)
        done(answer)
        return job

    def answer_all(self, outcome: Outcome, message: str = "") -> None:
        """Answer the first job with the same outcome for all its chunks."""
        job = self.jobs[0][0]
        assert isinstance(job, ChunkJob)
        fetched = (Fetched(outcome, message=message),) * len(job.wanted)
        self.answer(ChunksDone(job.number, fetched, 1, 0))

    def land(self, plain: Callable[[bytes], bytes]) -> None:
        """Write the first job's chunks into their slots; `plain` gives the bytes of an id."""
        job = self.jobs[0][0]
        assert isinstance(job, ChunkJob)
        fetched = []
        for wanted in job.wanted:
            data = plain(wanted.chunk_id)
            if not wanted.segment:
                fetched.append(Fetched(Outcome.UNKEPT, data))
                continue
            fd = os.open(wanted.segment, os.O_WRONLY)
            os.pwrite(fd, data, wanted.position)
            os.close(fd)
            fetched.append(Fetched(Outcome.KEPT))
        self.answer(ChunksDone(job.number, tuple(fetched), 1, 0))


class PromptPool(HandPool):
    """A pool without processes whose jobs a real fetcher answers at the next turn of the loop."""

    def submit(
        self,
        job: Job,
        priority: int,
        done: Callable[[Answer], None],
        landed: Callable[[Sequence[int]], None] | None = None,
    ) -> None:
        super().submit(job, priority, done, landed)
        trio.lowlevel.current_trio_token().run_sync_soon(self._answer_next)

    def _answer_next(self) -> None:
        self.answer()


@dataclass(frozen=True)
class Plain:
    """A chunk with its bytes, of which no store knows."""

    ref: ChunkRef
    data: bytes


def plain_chunk(number: int, size_bytes: int = 4096) -> Plain:
    """Make a chunk that only `number` names."""
    data = number.to_bytes(8, "little") * (size_bytes // 8)
    ref = ChunkRef(chunk_id(data), size_bytes, bytes(32), number * size_bytes, size_bytes)
    return Plain(ref, data)


def fill(cache: Cache, plain: Plain) -> int:
    """Put a chunk into a free slot as a flight does; returns the slot."""
    [slot] = cache.l1.take_free(plain.ref.plain_bytes, 1)
    fd, position = cache.l1.place(slot)
    os.pwrite(fd, plain.data, position)
    return cache.l1.landed(slot, plain.ref.id, plain.ref.plain_bytes)


def table_of(store: Store, folder: Path, name: str = "image") -> ManifestTable:
    """Return the local table of an image's newest version."""
    manifest_id = store.image(name)[0].current.manifest
    path = folder / manifest_id
    write_table(store.manifest(manifest_id), path)
    return ManifestTable(path, PageCache(MIB))


async def wait_until(condition: Callable[[], bool], wait_s: float = 60) -> None:
    with trio.fail_after(wait_s):
        while not condition():  # noqa: ASYNC110 - what is waited for is another process, or a file
            await trio.sleep(0.01)
