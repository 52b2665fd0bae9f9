"""Measuring several things in turns, so that the drift of a shared machine hits all alike."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from rich.progress import track

from bench import fio
from bench.fio import Result, Workload

Subject = TypeVar("Subject")
# By subject and workload: the results of the rounds.
Measured = dict[tuple[Subject, Workload], list[Result]]


def measure_in_turns(
    paths: Mapping[Subject, Path], workloads: Sequence[Workload], runtime_s: float, rounds: int
) -> Measured[Subject]:
    """Measure each workload on each subject's file, once a round, the subjects in turns.

    Every other round goes backwards, so that nobody always comes after the same one.
    """
    measured: Measured[Subject] = {}
    order = list(paths)
    turns = [(w, s) for n in range(rounds) for w in workloads for s in order[:: -1 if n % 2 else 1]]
    for workload, subject in track(turns, description="measuring"):
        result = fio.measure(paths[subject], workload, runtime_s, 0.2)
        measured.setdefault((subject, workload), []).append(result)
    return measured
