"""`cachefs rename` and `cachefs rm`."""

from __future__ import annotations

import sys

import click

from cachefs.cli.options import examples, needed_store_option
from cachefs.errors import UsageError
from cachefs.ingest.publish import rename_image
from cachefs.store.store import open_store


@click.command(epilog=examples("cachefs rename --store /srv/images debian-12 templates/debian-12"))
@click.argument("old")
@click.argument("new")
@needed_store_option
def rename(old: str, new: str, store_url: str) -> None:
    """Give the image OLD, with all its versions, the name NEW.

    Mounts show the new name within seconds; a file that is open stays readable.
    """
    rename_image(open_store(store_url), old, new)
    click.echo(f"'{old}' is now '{new}'")


@click.command("rm", epilog=examples("cachefs rm --store /srv/images --yes templates/debian-11"))
@click.argument("name")
@needed_store_option
@click.option("--yes", is_flag=True, help="Do not ask.")
def remove(name: str, store_url: str, yes: bool) -> None:
    """Remove the image NAME, with all its versions, from the store.

    Asks first; without a terminal it needs --yes. The chunks stay in the store until they are
    collected, and importing the same image again finds them.
    """
    store = open_store(store_url)
    image, etag = store.image(name)
    count = len(image.versions)
    what = f"'{name}' and its {count} version{'s' if count > 1 else ''}"
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError(f"to remove {what} without being asked, give --yes")
        click.confirm(f"Remove {what} from {store.url}?", abort=True)
    store.remove_image(name, etag)
    click.echo(f"removed {what}; their chunks stay in the store until they are collected")
