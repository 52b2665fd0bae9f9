"""`cachefs export`."""

from __future__ import annotations

import sys

import click

from cachefs.cli.display import progress
from cachefs.cli.options import examples, needed_store_option
from cachefs.errors import UsageError
from cachefs.ingest.chunks import find_version
from cachefs.ingest.export import check_target, export_to_file, export_to_stream
from cachefs.store.store import open_store

STANDARD_OUTPUT = "-"


@click.command(
    epilog=examples(
        "cachefs export --store /srv/images templates/debian-12 disk.raw",
        "cachefs export templates/debian-12 - | zstd > disk.raw.zst",
    )
)
@click.argument("name")
@click.argument("target", metavar="FILE")
@needed_store_option
@click.option("--version", "number", type=click.IntRange(1), help="Which one; else the newest.")
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
def export(name: str, target: str, store_url: str, number: int | None, force: bool) -> None:
    """Write the image NAME to FILE, sparse, or to standard output for -.

    Every chunk is verified. FILE is there once it is complete; a stream that ends with an error is
    no whole image.
    """
    if target != STANDARD_OUTPUT:
        check_target(target, force)
    elif sys.stdout.isatty():
        raise UsageError("standard output is a terminal: give a file, or redirect it")
    store = open_store(store_url)
    image, _ = store.image(name)
    manifest = store.manifest(find_version(image, number).manifest)
    with progress(name) as show:
        if target == STANDARD_OUTPUT:
            export_to_stream(
                store, name, manifest, sys.stdout.fileno(), lambda at: show(at, manifest.size_bytes)
            )
        else:
            export_to_file(
                store, name, manifest, target, force, lambda at: show(at, manifest.size_bytes)
            )
