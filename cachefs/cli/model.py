"""The command for what the eviction policy of a running mount has learned."""

from __future__ import annotations

import time
from pathlib import Path

import click

from cachefs.cli.display import print_json
from cachefs.cli.mount import ask_daemon, run_folder
from cachefs.cli.options import json_option
from cachefs.errors import UsageError
from cachefs.units import format_size

_ANSWER_WAIT_S = 30.0
_AFTER_RESET = (
    "The model that hosts share stays in the store. "
    "This cache folder does not take it, until it has learned or imported another."
)
_ORIGINS = {
    "own": "trained here",
    "imported": "imported",
    "store": "from the store",
}


@click.command("model")
@json_option
@click.argument("action", type=click.Choice(["show", "export", "import", "reset"]))
@click.argument("mountpoint", type=Path)
@click.argument("file", type=Path, required=False)
def model_command(action: str, mountpoint: Path, file: Path | None, as_json: bool) -> None:
    """Show, export to FILE, import from FILE, or forget what eviction has learned."""
    if (action in {"export", "import"}) != (file is not None):
        raise UsageError("export and import take a FILE, show and reset do not")
    request = {"command": "model", "action": action}
    if file is not None:
        request["path"] = str(file.absolute())
    answer = ask_daemon(run_folder(mountpoint), request, _ANSWER_WAIT_S)
    if as_json:
        print_json(answer)
        return
    if action == "reset" and answer["is_shared"]:
        click.echo(_AFTER_RESET)
    for slot_bytes, figures in answer["classes"].items():
        click.echo(f"chunks of {format_size(int(slot_bytes))}")
        regret = "".join(
            f", {100 * share:+.2f}% of {name}" for name, share in figures["regret"].items()
        )
        origin = _ORIGINS.get(figures["origin"])
        trained = ""
        if figures["trained_at"]:
            at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(figures["trained_at"]))
            trained = f"  trained   last at {at}, in {1000 * figures['training_s']:.0f} ms\n"
        click.echo(
            f"  model     {figures['model'] or 'none yet: as lru'}, "
            f"{f'{origin}, ' if origin else ''}"
            f"{figures['trainings']} trainings, {figures['labelled_samples']} samples\n{trained}"
            f"  rules     {figures['ruler']}\n"
            f"  right     {100 * figures['accuracy']:.1f}% of guesses; "
            f"{100 * figures['majority_share']:.1f}% would be by always saying the same\n"
            f"  misses    against sampled caches{regret}"
        )
