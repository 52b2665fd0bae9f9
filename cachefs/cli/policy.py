"""The command that shows and changes the eviction policy of a running mount."""

from __future__ import annotations

from pathlib import Path

import click

from cachefs.cli.display import print_json
from cachefs.cli.mount import ask_daemon, run_folder
from cachefs.cli.options import json_option

_ANSWER_WAIT_S = 30.0


@click.command("policy")
@json_option
@click.argument("mountpoint", type=Path)
@click.argument("name", required=False)
def policy_command(mountpoint: Path, name: str | None, as_json: bool) -> None:
    """Show what decides which chunks leave L1, or let policy NAME do it until the mount ends."""
    request = {"command": "policy"} | ({"name": name} if name else {})
    answer = ask_daemon(run_folder(mountpoint), request, _ANSWER_WAIT_S)
    if as_json:
        print_json(answer)
    else:
        click.echo(f"{answer['policy']}  (there are {', '.join(answer['policies'])})")
