"""Hits: the speed of reads whose chunks are all in L1, beside servers that do nothing but read.

All servers serve the same bytes from the page cache and are mounted side by side. They are measured
in turns (A B C, C B A, ...), many short ones, and each figure is the median of its rounds, so that
the drift of a shared machine hits all alike. After a part of the rounds all are mounted anew, with
new files: where the bytes happen to lie in memory makes one mount up to a tenth faster than another
of the same server. The best C server is the one with the best median: the best of four in
each round would be the one that the noise has spared. Run it as `make bench-hot`.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import click

from bench import clock, files, fio, mounts
from bench.fio import Result, Workload
from bench.mounts import Server
from bench.table import Table, publish, rate
from bench.turns import Measured, measure_in_turns
from tests.images.disks import MIB

# Of the best C server's IOPS.
TARGET = 0.95
# Through Python (with `nolane_hits`), of the bare pyfuse3 server's IOPS.
TARGETS_THROUGH_PYTHON = {
    fio.RANDOM_4K_QD1: 0.55,
    fio.RANDOM_4K_QD32: 0.7,
    fio.RANDOM_128K_QD16: 0.7,
    fio.SEQUENTIAL_1M: 0.7,
}
# By server: seconds of a first read, and of a second one.
Timed = dict[Server, list[tuple[float, float]]]
# The C servers' shapes that won somewhere on some machine.
C_SERVERS = (
    mounts.libfuse(1),
    mounts.libfuse(2),
    mounts.libfuse(2, clone_fd=True),
    mounts.libfuse(4, clone_fd=True),
)


def ratio_by_rounds(mine: Sequence[Result], others: Sequence[Sequence[Result]]) -> float | None:
    """Return the median over rounds of my IOPS to those of the best of the others.

    Rounds are minutes apart, the turns in one are seconds apart: this ratio is steadier than that
    of two medians while other programs use the machine. None without others.
    """
    if not others:
        return None
    best = max(others, key=lambda results: median(result.iops for result in results))
    ratios = [result.iops / other.iops for result, other in zip(mine, best, strict=True)]
    return float(median(ratios))


def tabulate(measured: Measured[Server], workload: Workload) -> Table:
    """Return the table of one workload, with ratios to the servers that cachefs is held against."""
    rounds = {s: results for (s, w), results in measured.items() if w == workload}
    bare = [results for s, results in rounds.items() if s.name == mounts.bare_pyfuse3().name]
    c_servers = [results for s, results in rounds.items() if s.name.startswith("C libfuse")]
    heads = ["server", "IOPS", "speed", "p50 us", "p99 us", "of bare pyfuse3", "of the best C"]
    table = Table(workload.name, heads)
    for server, results in rounds.items():
        result = fio.median_result(results)
        of_bare, of_best_c = (ratio_by_rounds(results, others) for others in (bare, c_servers))
        table.add(
            server.name,
            f"{result.iops:,.0f}",
            rate(result.bytes_per_s),
            f"{result.p50_us:.0f}",
            f"{result.p99_us:.0f}",
            "-" if of_bare is None else f"{of_bare:.2f}",
            "-" if of_best_c is None else f"{of_best_c:.2f}",
        )
        if server.name.startswith("cachefs"):
            table.notes += _verdicts(server, workload, of_bare, of_best_c)
    return table


def _verdicts(
    server: Server, workload: Workload, of_bare: float | None, of_best_c: float | None
) -> list[str]:
    if "nolane_hits" in server.name:
        target, ratio, other = TARGETS_THROUGH_PYTHON.get(workload), of_bare, "bare pyfuse3"
    else:
        target, ratio, other = TARGET, of_best_c, "the best C"
    if target is None or ratio is None:
        return []
    verdict = "reached" if ratio >= target else "MISSED"
    return [f"{server.name}: target {target} of {other} {verdict} ({ratio:.2f})"]


def time_buffered(paths: Mapping[Server, Path]) -> Timed:
    """Read the file in sequence as `cat` does, with nothing in the kernel's cache, and again."""
    timed: Timed = {}
    for server, path in paths.items():
        files.forget_pages(path)
        timed[server] = [(clock.time_read(path, MIB), clock.time_read(path, MIB))]
        files.forget_pages(path)
    return timed


def tabulate_buffered(timed: Timed, size_bytes: int) -> Table:
    """Return the table of what `time_buffered` has measured on a file of this size."""
    heads = ["server", "first read", "again, from the kernel's page cache"]
    table = Table("Buffered, sequential, 1 MiB", heads)
    for server, pairs in timed.items():
        columns = zip(*pairs, strict=True)
        table.add(server.name, *(rate(size_bytes / median(column)) for column in columns))
    return table


@contextmanager
def mounted(servers: Sequence[Server], size_mib: int) -> Iterator[dict[Server, Path]]:
    """Mount all servers side by side on a new file; yields where each shows it."""
    with ExitStack() as stack:
        work = Path(stack.enter_context(TemporaryDirectory(prefix="hot-")))
        image = files.build_random_filled_image(work / "image", size_mib * MIB)
        paths = {}
        for server in servers:
            own = Path(stack.enter_context(TemporaryDirectory(prefix="s-", dir=work)))
            paths[server] = stack.enter_context(server.serve(image, own))
            mounts.warm(paths[server])
        yield paths


@click.command()
@click.option("--size-mib", default=1024, show_default=True, help="Size of the served file.")
@click.option("--runtime", "runtime_s", default=1.0, show_default=True, help="Seconds per point.")
@click.option("--rounds", default=4, show_default=True, help="Of each set of mounts.")
@click.option("--sets", default=4, show_default=True, help="How often all are mounted anew.")
@click.option(
    "--mount-options",
    multiple=True,
    default=[""],
    help="Options of a cachefs mount; repeated, for several cachefs side by side.",
)
@click.option("--cachefs/--no-cachefs", "with_cachefs", default=True, show_default=True)
@click.option("--c/--no-c", "with_c", default=True, show_default=True, help="The C servers.")
@click.option("--only", default="", help="Only workloads whose name contains this.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Write the tables here, too.")
def main(
    size_mib: int,
    runtime_s: float,
    rounds: int,
    sets: int,
    mount_options: Sequence[str],
    with_cachefs: bool,
    with_c: bool,
    only: str,
    markdown: Path | None,
) -> None:
    """Measure hits through cachefs beside a bare pyfuse3 and C libfuse servers."""
    servers = [mounts.cachefs(options) for options in mount_options] if with_cachefs else []
    servers += [mounts.bare_pyfuse3(), *(C_SERVERS if with_c else ())]
    workloads = [workload for workload in fio.HOT_WORKLOADS if only in workload.name]
    measured: Measured[Server] = {}
    buffered: Timed = {}
    for _ in range(sets):
        with mounted(servers, size_mib) as paths:
            for key, results in measure_in_turns(paths, workloads, runtime_s, rounds).items():
                measured.setdefault(key, []).extend(results)
            for server, pairs in time_buffered(paths).items():
                buffered.setdefault(server, []).extend(pairs)
    tables = [tabulate(measured, workload) for workload in workloads]
    publish([*tables, tabulate_buffered(buffered, size_mib * MIB)], markdown)


if __name__ == "__main__":
    main()
