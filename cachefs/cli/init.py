"""`cachefs init`."""

from __future__ import annotations

import click

from cachefs.cli.options import examples
from cachefs.cli.verbosity import verbose_option
from cachefs.store.store import create_store


@click.command(epilog=examples("cachefs init /srv/images", "cachefs init s3://images/prod"))
@click.argument("url", metavar="STORE")
@verbose_option
def init(url: str) -> None:
    """Make a new store in an empty folder, or below an empty prefix of a bucket on S3.

    STORE is a folder, which may not exist yet, file:///path, or s3://bucket/prefix.
    """
    store = create_store(url)
    click.echo(f"made a store in {store.url}")
