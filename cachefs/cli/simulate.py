"""The command that replays a recording through eviction policies."""

from __future__ import annotations

from pathlib import Path

import click

from cachefs.cli.display import count_progress, print_json, print_table
from cachefs.cli.options import SizeType, examples, json_option
from cachefs.cli.verbosity import verbose_option
from cachefs.model.chunk import check_chunk_bytes
from cachefs.units import KIB


@click.command(
    epilog=examples(
        "cachefs simulate --size 5% --size 10% disk.npz",
        "cachefs simulate --policy s3fifo --policy ml --png curves.png trace.blkparse",
    )
)
@click.option(
    "--policy", "policies", multiple=True, help="lru, lfu, arc, s3fifo, sieve, 2q, ml.  [all]"
)
@click.option(
    "--size",
    "sizes",
    multiple=True,
    help="Of L1: a share of the distinct chunks, as in 10%, or bytes, as in 4GiB.  [1 to 40%]",
)
@click.option(
    "--chunk-size",
    "chunk_sizes",
    multiple=True,
    type=SizeType(),
    default=(64 * KIB,),
    help="Of the images.  [64KiB]",
)
@click.option("--format", "format_name", help="Of the recording; else it is recognised.")
@click.option("--jobs", type=click.IntRange(1, 256), default=1, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, help="Of what ml draws.")
@click.option(
    "--png", type=click.Path(path_type=Path, dir_okay=False), help="Draw miss-ratio curves there."
)
@json_option
@verbose_option
@click.argument("trace", type=click.Path(path_type=Path))
def simulate(
    policies: tuple[str, ...],
    sizes: tuple[str, ...],
    chunk_sizes: tuple[int, ...],
    format_name: str | None,
    jobs: int,
    seed: int,
    png: Path | None,
    as_json: bool,
    trace: Path,
) -> None:
    """Replay TRACE, a recording of block accesses, through the policies that L1 can have.

    LRU and Belady's MIN are always there: the gap between them is what a policy can close.
    """
    from cachefs.policy.evict.names import POLICIES  # noqa: PLC0415 - numpy only when needed
    from cachefs.simulate import grid  # noqa: PLC0415
    from cachefs.simulate.readers import read_requests  # noqa: PLC0415

    for chunk_bytes in chunk_sizes:
        check_chunk_bytes(chunk_bytes)
    wanted = [grid.parse_cache_size(text) for text in sizes or ("1%", "5%", "10%", "20%", "40%")]
    runs = grid.plan(chunk_sizes, wanted, policies or POLICIES, seed)
    if png is not None:
        from cachefs.simulate.picture import check_possible  # noqa: PLC0415

        check_possible()
    requests = read_requests(trace, format_name)
    with count_progress("simulating", wanted=not as_json) as show:
        results = grid.run_all(requests, runs, jobs, show)
    gaps = grid.gaps(results)
    pairs = list(zip(results, gaps, strict=True))
    if as_json:
        print_json([grid.describe(result, gap) for result, gap in pairs])
    else:
        print_table(grid.ROW_HEADINGS, [grid.row_of(result, gap) for result, gap in pairs])
    if png is not None:
        from cachefs.simulate.picture import draw  # noqa: PLC0415

        draw(requests.name, results, png)
