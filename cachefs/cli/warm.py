"""`cachefs warm`: an image, or parts of it, into a mount's L1 before anybody asks."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from cachefs.cli.display import print_json, progress
from cachefs.cli.mount import ask_daemon, run_folder
from cachefs.cli.options import SizeType, examples, json_option
from cachefs.errors import CacheError, CachefsError, StoreUnavailableError, UsageError
from cachefs.units import format_size, parse_size

_ANSWER_WAIT_S = 60.0
_LOOK_INTERVAL_S = 0.3


class RangeType(click.ParamType[tuple[int, int]]):
    """A part of an image: from a size to a size."""

    name = "begin-end"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Return begin and end in bytes."""
        if isinstance(value, tuple):
            return value
        begin, dash, end = value.partition("-")
        try:
            if not dash:
                raise UsageError(f"'{value}' is not a range: write it as in 0-64MiB")
            return parse_size(begin or "0"), parse_size(end)
        except UsageError as error:
            self.fail(str(error), param, ctx)


@click.command(
    "warm",
    epilog=examples(
        "cachefs warm /mnt/images templates/debian-12",
        "cachefs warm --boot-set /mnt/images templates/debian-12",
        "cachefs warm --range 0-64MiB --rate 50MiB /mnt/images templates/debian-12",
    ),
)
@json_option
@click.option("--range", "ranges", type=RangeType(), multiple=True, help="Only this part.")
@click.option("--boot-set", is_flag=True, help="Only what its guests touch at a start.")
@click.option(
    "--profile", type=Path, help="Only what this file knows: see 'cachefs handover', 'profile'."
)
@click.option("--rate", type=SizeType(), default=0, help="The most in a second.")
@click.option("--background", is_flag=True, help="Do not wait for the end.")
@click.option("--show", is_flag=True, help="Only tell how far it is.")
@click.option("--cancel", is_flag=True, help="End it.")
@click.argument("mountpoint", type=Path)
@click.argument("name")
def warm(
    mountpoint: Path,
    name: str,
    rate: int,
    background: bool,
    show: bool,
    cancel: bool,
    as_json: bool,
    **parts: Any,
) -> None:
    """Bring the image NAME into a mount's local cache, as far as it has room.

    Demand goes first, and nothing is given up for it. Ctrl-C ends it.
    """
    if sum(map(bool, parts.values())) > 1:
        raise UsageError("--range, --boot-set and --profile exclude each other")
    if parts["profile"] is not None:
        parts["profile"] = str(parts["profile"].absolute())
    folder = run_folder(mountpoint)

    def ask(action: str, **more: Any) -> dict[str, Any]:
        request = {"command": "warm", "action": action, "name": name, **more}
        return ask_daemon(folder, request, _ANSWER_WAIT_S)

    if show or cancel:
        answer = ask("cancel" if cancel else "show")
    else:
        answer = ask("start", bytes_per_s=rate, **parts)
        if not background:
            answer = _wait_for_end(ask, answer)
    if as_json:
        print_json(answer)
    else:
        click.echo(_for_people(answer))
    if not (show or cancel or background):
        _check(answer)


def _wait_for_end(ask: Any, answer: dict[str, Any]) -> dict[str, Any]:
    try:
        with progress("warming") as show_done:
            while answer["state"] == "running":
                show_done(answer["looked_at"], answer["chunks"])
                time.sleep(_LOOK_INTERVAL_S)
                answer = ask("show")
    except KeyboardInterrupt:
        ask("cancel")
        raise
    return answer


def _for_people(answer: dict[str, Any]) -> str:
    fetched = format_size(answer["fetched_bytes"])
    failed = f", {answer['failed_chunks']} failed" if answer["failed_chunks"] else ""
    return (
        f"{answer['name']}: {answer['state']}, {answer['looked_at']} of {answer['chunks']} chunks, "
        f"{fetched} fetched{failed}"
    )


def _check(answer: dict[str, Any]) -> None:
    """Raise an error for an end that is not what was asked for."""
    state = answer["state"]
    if state == "full":
        raise CacheError("L1 is full: raise the quota, or warm less")
    if state == "failed":
        raise StoreUnavailableError("the store did not give all of it")
    if state == "cancelled":
        raise CachefsError("somebody has cancelled it")
