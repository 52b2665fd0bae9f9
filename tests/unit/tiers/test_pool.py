"""The pool with real fetchers over a real store."""

import gc
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random

import pytest
import trio

from cachefs.errors import NotFoundError, StoreUnavailableError
from cachefs.metrics import Metrics
from cachefs.store.store import Store
from cachefs.tiers import pool as module
from cachefs.tiers.jobs import (
    Answer,
    ChunkJob,
    ChunksDone,
    Done,
    Failed,
    ListJob,
    Outcome,
    TableJob,
    Wanted,
)
from cachefs.tiers.pool import AHEAD, DEMAND, FetcherPool
from tests.caches import table_of, wait_until
from tests.stores import CHUNK, import_bytes, new_store

DATA = Random(1).randbytes(40 * CHUNK)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = new_store(tmp_path)
    import_bytes(store, DATA)
    return store


@asynccontextmanager
async def running_pool(
    store: Store, count: int = 1, job_timeout_s: float = 30
) -> AsyncIterator[tuple[FetcherPool, Metrics]]:
    metrics = Metrics()
    lock_fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    pool = FetcherPool(store.url, store.identity, count, lock_fd, job_timeout_s, metrics)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.run)
        yield pool, metrics
        nursery.cancel_scope.cancel()
    os.close(lock_fd)
    assert pool.pids == set()


def jobs_of(pool: FetcherPool, store: Store, folder: Path, per_job: int = 1) -> list[ChunkJob]:
    table = table_of(store, folder)
    refs = [table.chunk(index) for index in range(len(DATA) // CHUNK)]
    table.close()
    wanted = [Wanted(r.id, r.plain_bytes, r.pack, r.offset, r.frame_bytes, "", 0) for r in refs]
    return [
        ChunkJob(pool.next_number(), tuple(wanted[at : at + per_job]))
        for at in range(0, len(wanted), per_job)
    ]


async def test_jobs_come_back_with_their_answers(store: Store, tmp_path: Path) -> None:
    async with running_pool(store, 2) as (pool, metrics):
        jobs = jobs_of(pool, store, tmp_path, 7)
        answers: dict[int, Answer] = {}
        for job in jobs:
            pool.submit(job, 0, lambda answer: answers.update({answer.number: answer}))
        await wait_until(lambda: len(answers) == len(jobs))
        found = []
        for job in jobs:
            answer = answers[job.number]
            assert isinstance(answer, ChunksDone)
            found += [fetched.plain for fetched in answer.fetched]
        assert b"".join(found) == DATA
        assert isinstance(await pool.ask(ListJob(pool.next_number(), {}), 0), Done)
        with pytest.raises(NotFoundError, match="0123"):
            await pool.ask(TableJob(pool.next_number(), "0123" * 16, (str(tmp_path / "t"),)), 0)
        assert len(pool.pids) == 2
        assert metrics.fetcher_deaths == 0


async def test_no_job_is_lost_when_fetchers_are_killed(store: Store, tmp_path: Path) -> None:
    chosen = Random(3)
    async with running_pool(store, 2) as (pool, metrics):
        jobs = jobs_of(pool, store, tmp_path)
        answers: dict[int, list[Answer]] = {job.number: [] for job in jobs}
        await wait_until(lambda: len(pool.pids) == 2)
        killed = answered = 0
        for job in jobs:
            pool.submit(job, 0, lambda answer: answers[answer.number].append(answer))
            await trio.sleep(chosen.uniform(0, 0.1))
            if killed < 5 and chosen.random() < 0.2:
                # A busy machine starts fetchers slowly: no job is to lose three before one serves.
                before = answered
                await wait_until(lambda: sum(map(len, answers.values())) > before)  # noqa: B023
                answered = sum(map(len, answers.values()))
                with suppress(ProcessLookupError, IndexError):  # one that ended just now
                    os.kill(chosen.choice(sorted(pool.pids)), signal.SIGKILL)
                    killed += 1
                if killed % 2 == 0:  # no job is to lose three of them
                    await wait_until(lambda: all(answers[n] for n in answers if n <= job.number))  # noqa: B023
        await wait_until(lambda: all(answers.values()))
        assert killed >= 4
        assert metrics.fetcher_deaths >= killed - 1
        for job in jobs:
            [answer] = answers[job.number]
            assert isinstance(answer, ChunksDone), answer
            assert answer.fetched[0].outcome is Outcome.UNKEPT
        assert pool.queued == 0


async def test_a_job_that_ends_three_fetchers_fails_and_others_go_on(
    store: Store, tmp_path: Path
) -> None:
    async with running_pool(store) as (pool, metrics):
        fifo = tmp_path / "hangs"
        os.mkfifo(fifo)  # a fetcher that opens it for writing waits for a reader for ever
        [good, bad, *_] = jobs_of(pool, store, tmp_path)
        bad = ChunkJob(bad.number, (bad.wanted[0]._replace(segment=str(fifo)),))
        answers: list[Answer] = []
        pool.submit(bad, 0, answers.append)
        for deaths in range(3):
            await wait_until(lambda: bool(pool.pids) and not pool.queued)
            os.kill(min(pool.pids), signal.SIGKILL)
            await wait_until(partial(_has_deaths, metrics, deaths + 1))
        await wait_until(lambda: bool(answers))
        [answer] = answers
        assert isinstance(answer, Failed)
        assert isinstance(answer.error, StoreUnavailableError)
        assert "chunks ended 3 times" in str(answer.error)
        assert isinstance(await pool.ask(good, 0), ChunksDone)


async def test_a_silent_fetcher_is_ended_and_its_jobs_done_by_another(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_pool(store, 1, job_timeout_s=4) as (pool, metrics):
        [first, second, third, *_] = jobs_of(pool, store, tmp_path)
        await pool.ask(first, 0)
        [pid] = pool.pids
        os.kill(pid, signal.SIGSTOP)
        answers: list[Answer] = []
        for job in (second, third):
            pool.submit(job, 0, answers.append)
        await wait_until(lambda: len(answers) == 2)
        assert all(isinstance(answer, ChunksDone) for answer in answers)
        assert pid not in pool.pids
        assert metrics.fetcher_deaths == 1
        assert any(f"fetcher {pid} is silent" in message for message in caplog.messages)


async def test_demand_goes_before_what_came_earlier(store: Store, tmp_path: Path) -> None:
    async with running_pool(store) as (pool, _):
        jobs = jobs_of(pool, store, tmp_path)[:9]
        order: list[int] = []
        # Submitted in one go, before the fetcher takes any.
        for number, job in enumerate(jobs):
            pool.submit(job, 5 if number < 6 else 0, lambda answer: order.append(answer.number))
        assert pool.queued == 9
        await wait_until(lambda: len(order) == 9)
        numbers = [job.number for job in jobs]
        assert order == numbers[6:] + numbers[:6]


async def test_a_fetcher_has_only_so_many_jobs_at_once(store: Store, tmp_path: Path) -> None:
    async with running_pool(store) as (pool, _):
        jobs = jobs_of(pool, store, tmp_path)
        await pool.ask(jobs[0], 0)
        [pid] = pool.pids
        os.kill(pid, signal.SIGSTOP)
        answers: list[Answer] = []
        for job in jobs[1:]:
            pool.submit(job, 0, answers.append)
        await wait_until(lambda: pool.queued == len(jobs) - 1 - module._JOBS_AHEAD)
        await trio.sleep(0.1)
        assert pool.queued == len(jobs) - 1 - module._JOBS_AHEAD
        os.kill(pid, signal.SIGCONT)
        await wait_until(lambda: len(answers) == len(jobs) - 1)


async def test_the_end_of_the_pool_waits_for_its_fetchers(store: Store, tmp_path: Path) -> None:
    async with running_pool(store, 2) as (pool, _):
        await pool.ask(ListJob(pool.next_number(), {}), 0)
        await wait_until(lambda: len(pool.pids) == 2)
        pids = sorted(pool.pids)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_fetchers_that_cannot_be_started_are_tried_again(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_pool(store) as (pool, metrics):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "executable", "/nowhere/python")
            await wait_until(lambda: metrics.fetcher_deaths >= 2)
        assert any("cannot start a fetcher" in message for message in caplog.messages)
        assert isinstance(await pool.ask(ListJob(pool.next_number(), {}), 0), Done)
        gc.collect()  # a socket that was left open would warn


async def test_a_fetcher_ends_with_its_daemon(store: Store, tmp_path: Path) -> None:
    program = f"""
import trio
from cachefs.metrics import Metrics
from cachefs.tiers.jobs import ListJob
from cachefs.tiers.pool import AHEAD, DEMAND, FetcherPool

async def main():
    pool = FetcherPool({store.url!r}, {store.identity!r}, 1, 2, 30, Metrics())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.run)
        await pool.ask(ListJob(0, {{}}), 0)
        print(*pool.pids, flush=True)
        await trio.sleep_forever()

trio.run(main)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:  # noqa: ASYNC220
        assert process.stdout is not None
        pid = int(await trio.to_thread.run_sync(process.stdout.readline))
        process.kill()
    await wait_until(lambda: _is_dead(pid))


def _has_deaths(metrics: Metrics, count: int) -> bool:
    return metrics.fetcher_deaths >= count


def _is_dead(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


async def test_jobs_ahead_have_places_of_their_own_and_those_that_hurry_leave_them(
    store: Store, tmp_path: Path
) -> None:
    async with running_pool(store) as (pool, _):
        jobs = jobs_of(pool, store, tmp_path)
        await pool.ask(jobs[0], 0)
        [pid] = pool.pids
        os.kill(pid, signal.SIGSTOP)
        order: list[int] = []
        ahead = [replace(job, is_ahead=True) for job in jobs[1:5]]
        for job in ahead:
            pool.submit(job, AHEAD, lambda answer: order.append(answer.number))
        await wait_until(lambda: pool.queued == 3)  # one place
        for job in jobs[5:7]:
            pool.submit(job, DEMAND, lambda answer: order.append(answer.number))
        await wait_until(lambda: pool.queued == 3)  # none of them in demand's way
        pool.hurry(ahead[3].number)
        pool.hurry(12345)
        os.kill(pid, signal.SIGCONT)
        await wait_until(lambda: len(order) == 6)
        assert order.index(ahead[3].number) < order.index(ahead[1].number)


async def test_a_job_ahead_whose_fetcher_ends_is_given_up(store: Store, tmp_path: Path) -> None:
    async with running_pool(store) as (pool, _):
        jobs = jobs_of(pool, store, tmp_path)
        await pool.ask(jobs[0], 0)
        [pid] = pool.pids
        os.kill(pid, signal.SIGSTOP)
        answers: list[Answer] = []
        pool.submit(replace(jobs[1], is_ahead=True), AHEAD, answers.append)
        pool.submit(jobs[2], DEMAND, answers.append)
        await wait_until(lambda: pool.queued == 0)
        os.kill(pid, signal.SIGKILL)
        await wait_until(lambda: len(answers) == 2)
        assert [type(answer) for answer in answers] == [Failed, ChunksDone]
