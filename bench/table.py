"""Tables of measurements, for the terminal and for documentation."""

import os
import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import rich.console
import rich.table


@dataclass
class Table:
    """A table whose first column names what the row is about.

    Attributes:
        title: One line; a heading in Markdown.
        columns: The heads.
        rows: Texts, one a column.
        notes: Lines below the table.
    """

    title: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, *cells: str) -> None:
        """Add a row."""
        if len(cells) != len(self.columns):
            raise ValueError(f"{self.title}: {len(cells)} cells for {len(self.columns)} columns")
        self.rows.append(cells)

    def markdown(self) -> str:
        """Return the table as Markdown, with its title as a heading."""
        head = [f"| {' | '.join(self.columns)} |", f"| --- |{' ---: |' * (len(self.columns) - 1)}"]
        body = [f"| {' | '.join(row)} |" for row in self.rows]
        return "\n".join([f"### {self.title}", "", *head, *body, "", *self.notes]).rstrip() + "\n"

    def show(self) -> None:
        """Print the table."""
        drawn = rich.table.Table(title=self.title, title_justify="left")
        for place, column in enumerate(self.columns):
            drawn.add_column(column, justify="right" if place else "left")
        for row in self.rows:
            drawn.add_row(*row)
        console = rich.console.Console(width=None if sys.stdout.isatty() else 160)
        console.print(drawn)
        for note in self.notes:
            console.print(note, markup=False)


def publish(tables: Sequence[Table], markdown: Path | None) -> None:
    """Print tables, and write them as Markdown if a file is named."""
    for table in tables:
        table.show()
    if markdown:
        where = f"{machine()}; made with `{command()}`"
        parts = [table.markdown() for table in tables]
        markdown.write_text("\n".join([*parts, where, ""]), encoding="utf-8")


def machine() -> str:
    """Return what a reader has to know about the machine, in one line."""
    kernel = ".".join(platform.release().split(".")[:2])
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{os.cpu_count()} cores, {memory_gib:.0f} GiB of memory, "
        f"Linux {kernel}, Python {platform.python_version()}"
    )


def command() -> str:
    """Return the command that made this run, as a reader would repeat it."""
    module = sys.modules["__main__"].__spec__
    name = f"-m {module.name}" if module else sys.argv[0]
    return shlex.join([".venv/bin/python", *name.split(), *sys.argv[1:]])


def rate(bytes_per_s: float) -> str:
    """Return a speed for people: 812 MiB/s, 4.10 GiB/s."""
    mib = bytes_per_s / 2**20
    return f"{mib:.0f} MiB/s" if mib < 1000 else f"{mib / 1024:.2f} GiB/s"


def size(size_bytes: float) -> str:
    """Return a size for people: 812 MiB, 1.50 GiB."""
    mib = size_bytes / 2**20
    return f"{mib:.1f} MiB" if mib < 1000 else f"{mib / 1024:.2f} GiB"
