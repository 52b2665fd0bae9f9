"""`cachefs init`."""

from __future__ import annotations

import click

from cachefs.cli.options import examples
from cachefs.cli.verbosity import verbose_option
from cachefs.store.store import create_store


@click.command(epilog=examples("cachefs init /srv/images"))
@click.argument("url", metavar="STORE")
@verbose_option
def init(url: str) -> None:
    """Make a new store in an empty folder.

    STORE is a folder, which may not exist yet, or file:///path.
    """
    store = create_store(url)
    click.echo(f"made a store in {store.url}")
