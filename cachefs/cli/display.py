"""What commands show: JSON, tables, progress.

Results go to standard output; progress goes to standard error, and only to a terminal.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

ShowDone = Callable[[int, int | None], None]
"""Shows how many bytes (or things) are done, and of how many if that is known."""


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    click.echo(json.dumps(value, indent=1))


def say(message: str) -> None:
    """Print a line for people, on standard error."""
    click.echo(f"cachefs: {message}", err=True)


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; a heading that ends in `>` is for a column of figures.

    Into a pipe a line is as long as its row.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        figures = heading.endswith(">")
        name = heading.removesuffix(">")
        table.add_column(name, justify="right" if figures else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 10_000
    with console.capture() as capture:
        console.print(table)
    click.echo("\n".join(line.rstrip() for line in capture.get().splitlines()))


@contextmanager
def progress(what: str, wanted: bool = True) -> Iterator[ShowDone]:
    """Show a bar with speed and time left while the context is open, if there is a terminal.

    Args:
        what: What goes on, in a word or two.
        wanted: Whether to show anything.
    """
    columns = (DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn())
    with _bar(what, wanted, columns) as show:
        yield show


@contextmanager
def count_progress(what: str, wanted: bool = True) -> Iterator[ShowDone]:
    """Show a bar that counts things, not bytes, while the context is open; else as `progress`."""
    columns = (MofNCompleteColumn(), TimeElapsedColumn())
    with _bar(what, wanted, columns) as show:
        yield show


@contextmanager
def _bar(what: str, wanted: bool, figures: Sequence[ProgressColumn]) -> Iterator[ShowDone]:
    if not wanted or not sys.stderr.isatty():
        yield lambda _done, _all: None
        return
    text = TextColumn("{task.description}", markup=False)
    columns = (SpinnerColumn(), text, BarColumn(), *figures)
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)

        def show(done: int, everything: int | None) -> None:
            bar.update(task, completed=done, total=everything)

        yield show
