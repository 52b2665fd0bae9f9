"""Accesses as a picture: time against offset, coloured by who served them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cachefs.errors import CachefsError
from cachefs.simulate.ahead import L1, LATE, STORE, Served
from cachefs.simulate.picture import check_possible
from cachefs.units import MIB

_MOST_POINTS = 200_000
_COLOURS = {L1: "0.75", LATE: "tab:orange", STORE: "tab:red"}
_ARMS = ("tab:green", "tab:blue", "tab:purple", "tab:cyan", "tab:olive", "tab:brown")


def draw_served(name: str, served: Sequence[Served], chunk_bytes: int, path: Path) -> None:
    """Write a PNG of who served each chunk; of very many, evenly chosen ones.

    Raises:
        UsageError: matplotlib is not installed.
        CachefsError: the file cannot be written.
    """
    check_possible()
    from matplotlib.figure import Figure  # noqa: PLC0415 - an extra

    step = -(-len(served) // _MOST_POINTS) or 1
    shown = served[::step]
    figure = Figure(figsize=(10, 6), layout="constrained")
    axis = figure.subplots()
    arms = sorted({each.who for each in shown} - set(_COLOURS))
    colours = _COLOURS | {arm: _ARMS[at % len(_ARMS)] for at, arm in enumerate(arms)}
    for who, colour in colours.items():
        points = np.array([(s.time_s, s.chunk) for s in shown if s.who == who]).reshape(-1, 2)
        if len(points):
            axis.plot(
                points[:, 0],
                points[:, 1] * (chunk_bytes / MIB),
                ".",
                markersize=2,
                color=colour,
                label=f"{who} ({100 * len(points) / len(shown):.0f}%)",
            )
    axis.set(title=name, xlabel="time, s", ylabel="offset, MiB")
    axis.legend(markerscale=5)
    try:
        figure.savefig(path, format="png", dpi=120)
    except OSError as error:
        raise CachefsError(f"cannot write {path}: {error.strerror}") from error
