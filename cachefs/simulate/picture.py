"""Miss-ratio curves as a picture."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from cachefs.errors import CachefsError, UsageError
from cachefs.simulate.grid import MIN, Result
from cachefs.units import format_size


def check_possible() -> None:
    """Return if pictures can be drawn.

    Raises:
        UsageError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("--png needs matplotlib: pip install 'cachefs[pictures]'")


def draw(name: str, results: Sequence[Result], path: Path) -> None:
    """Write a PNG: for each chunk size the miss ratio of each policy over the size of the cache.

    Raises:
        UsageError: matplotlib is not installed.
        CachefsError: the file cannot be written.
    """
    check_possible()
    from matplotlib.figure import Figure  # noqa: PLC0415 - an extra

    chunk_sizes = list(dict.fromkeys(result.run.chunk_bytes for result in results))
    figure = Figure(figsize=(6.4 * len(chunk_sizes), 4.8), layout="constrained")
    axes = figure.subplots(1, len(chunk_sizes), squeeze=False)[0]
    for axis, chunk_bytes in zip(axes, chunk_sizes, strict=True):
        mine = [result for result in results if result.run.chunk_bytes == chunk_bytes]
        for policy in dict.fromkeys(result.run.policy for result in mine):
            points = sorted((r.slots, r.outcome.miss_ratio) for r in mine if r.run.policy == policy)
            style = {"lru": "k--", MIN: "k:"}.get(policy, "o-")
            axis.plot(
                [slots for slots, _ in points],
                [100 * ratio for _, ratio in points],
                style,
                label="Belady's MIN" if policy == MIN else policy,
            )
        axis.set(
            title=f"{name}, chunks of {format_size(chunk_bytes)}",
            xlabel="slots",
            ylabel="misses, %",
            xscale="log",
        )
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.legend()
    try:
        figure.savefig(path, format="png", dpi=120)
    except OSError as error:
        raise CachefsError(f"cannot write {path}: {error.strerror}") from error
