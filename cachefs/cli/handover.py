"""`cachefs handover`: what a running guest has touched lately, for the host that it moves to."""

from __future__ import annotations

from pathlib import Path

import click

from cachefs.cli.display import print_json
from cachefs.cli.mount import ask_daemon, run_folder
from cachefs.cli.options import examples, json_option
from cachefs.errors import CachefsError
from cachefs.units import format_size

_ANSWER_WAIT_S = 60.0


@click.command(
    "handover",
    epilog=examples(
        "cachefs handover /mnt/images guests/web-1 web-1.profile",
        "cachefs warm --profile web-1.profile /mnt/images guests/web-1   # on the other host",
    ),
)
@json_option
@click.option(
    "--last",
    "last_s",
    type=click.FloatRange(min=0, min_open=True),
    default=600.0,
    show_default=True,
    help="Only what was touched in the last so many seconds.",
)
@click.argument("mountpoint", type=Path)
@click.argument("name")
@click.argument("file", type=Path)
def handover(mountpoint: Path, name: str, file: Path, last_s: float, as_json: bool) -> None:
    """Write what the guest that runs on the image NAME has touched lately to FILE.

    The host that the guest moves to warms it before the guest arrives: what was touched last first.
    """
    request = {
        "command": "profile",
        "action": "handover",
        "name": name,
        "lately_s": last_s,
        "path": str(file.absolute()),
    }
    answer = ask_daemon(run_folder(mountpoint), request, _ANSWER_WAIT_S)
    if as_json:
        print_json(answer)
    else:
        size = format_size(answer["bytes"])
        click.echo(f"{name}: {answer['chunks']} chunks ({size}) to {file}")
    if not answer["chunks"]:
        raise CachefsError(f"nothing of '{name}' was read through this mount lately: see --last")
