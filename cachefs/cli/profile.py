"""The command for what a running mount has learned of its images."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from cachefs.cli.display import print_json, print_table
from cachefs.cli.mount import ask_daemon, run_folder
from cachefs.cli.options import examples, json_option
from cachefs.errors import UsageError
from cachefs.units import format_size

_ANSWER_WAIT_S = 30.0


@click.command(
    "profile",
    epilog=examples(
        "cachefs profile list /mnt/images",
        "cachefs profile export /mnt/images templates/debian-12 debian-12.profile",
    ),
)
@json_option
@click.argument("action", type=click.Choice(["list", "show", "export", "import", "drop"]))
@click.argument("mountpoint", type=Path)
@click.argument("name", required=False)
@click.argument("file", type=Path, required=False)
def profile_command(
    action: str, mountpoint: Path, name: str | None, file: Path | None, as_json: bool
) -> None:
    """Tell, move or forget what was learned of the image NAME: what its guests touch at a start.

    export writes it to FILE, import takes it from there, for this image or another one.
    """
    if (action == "list") != (name is None):
        raise UsageError("all but list take the NAME of an image")
    if (action in {"export", "import"}) != (file is not None):
        raise UsageError("export and import take a FILE, the others do not")
    request = {"command": "profile", "action": action, "name": name or ""}
    if file is not None:
        request["path"] = str(file.absolute())
    answer = ask_daemon(run_folder(mountpoint), request, _ANSWER_WAIT_S)
    if as_json:
        print_json(answer)
        return
    rows = [
        (
            each["image"],
            datetime.fromtimestamp(each["saved_s"], UTC).isoformat(" ", "minutes"),
            str(each["runs"]),
            format_size(each["working_set_bytes"]),
            format_size(each["replayed_bytes"]),
            ", ".join(f"{arm} {count}" for arm, count in each["rows"].items()),
        )
        for each in answer["profiles"]
    ]
    if rows:
        print_table(("image", "saved", "runs", "touched", "replayed", "rows of"), rows)
