"""`cachefs verify`."""

from __future__ import annotations

from typing import Any

import click

from cachefs.cli.display import print_json, progress, say
from cachefs.cli.options import examples, json_option, needed_store_option
from cachefs.errors import CorruptError
from cachefs.ingest.verify import VerifyReport, verify_store
from cachefs.ingest.verify_pack import Problem
from cachefs.store.store import open_store
from cachefs.units import format_size


@click.command(epilog=examples("cachefs verify --store /srv/images"))
@click.argument("name", required=False)
@needed_store_option
@json_option
def verify(name: str | None, store_url: str, as_json: bool) -> int:
    """Read back and check every chunk of a store, or of the one image NAME.

    Checks packs against their ids and indexes, every chunk, manifests, and image records. Ends with
    exit code 5 if anything is wrong, and says for each object which images it hits and what to do.
    """
    store = open_store(store_url)
    with progress(f"verify {name or store.url}", not as_json) as show:
        report = verify_store(store, name, show)
    if as_json:
        print_json(_json(report))
    else:
        for key in report.foreign:
            click.echo(f"{key}: no part of a store; not touched")
        for problem in report.problems:
            click.echo(_line(problem))
        click.echo(_summary(report))
    if report.problems:
        say(f"{len(report.problems)} objects of {store.url} are damaged")
    return CorruptError.exit_code if report.problems else 0


def _line(problem: Problem) -> str:
    hit = f"; hits {', '.join(problem.images)}" if problem.images else "; hits no image"
    return f"{problem.key}: {problem.what}{hit}; {problem.advice}"


def _summary(report: VerifyReport) -> str:
    speed = f"{report.stored_bytes / 1e6 / report.duration_s:.0f} MB/s" if report.duration_s else ""
    return (
        f"checked {report.image_count} images in {report.version_count} versions, "
        f"{report.pack_count} packs with {report.chunk_count} chunks "
        f"({format_size(report.stored_bytes)}) in {report.duration_s:.1f} s, {speed}: "
        f"{len(report.problems) or 'no'} problems"
    )


def _json(report: VerifyReport) -> dict[str, Any]:
    return {
        "images": report.image_count,
        "versions": report.version_count,
        "packs": report.pack_count,
        "chunks": report.chunk_count,
        "stored_bytes": report.stored_bytes,
        "duration_s": report.duration_s,
        "foreign": report.foreign,
        "problems": [problem._asdict() for problem in report.problems],
    }
