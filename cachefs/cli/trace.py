"""Commands for recordings of accesses: made on a mount, replayed under a virtual clock, drawn."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import click

from cachefs.cli.display import print_json, print_table, say
from cachefs.cli.mount import ask_daemon, run_folder
from cachefs.cli.options import SizeType, examples, json_option
from cachefs.cli.simulate import simulate
from cachefs.cli.verbosity import verbose_option
from cachefs.errors import CachefsError, NotFoundError, UsageError
from cachefs.model.chunk import check_chunk_bytes
from cachefs.units import KIB

_ANSWER_WAIT_S = 60.0
_ARMS = ("sequential", "replay", "recurrence", "markov", "association", "lstm")


@click.group("trace")
def trace() -> None:
    """Record what guests read of an image, and replay it: other caches, stores, policies, arms."""


@trace.command(epilog=examples("cachefs trace record --seconds 120 /mnt/images debian boot.npz"))
@click.option(
    "--seconds",
    type=click.FloatRange(0.1, 86_400),
    default=60.0,
    show_default=True,
    help="How long.",
)
@click.argument("mountpoint", type=Path)
@click.argument("name")
@click.argument("file", type=Path)
def record(seconds: float, mountpoint: Path, name: str, file: Path) -> None:
    """Record the reads of image NAME into FILE, until the time is over or Ctrl-C."""
    folder = run_folder(mountpoint)
    request: dict[str, Any] = {"command": "trace", "action": "start", "name": name}
    request |= {"path": str(file.absolute()), "seconds": seconds + 5.0}
    ask_daemon(folder, request, _ANSWER_WAIT_S)
    try:
        time.sleep(seconds)
    except KeyboardInterrupt:
        say("stopping")
    answer = ask_daemon(folder, {"command": "trace", "action": "stop"}, _ANSWER_WAIT_S)
    click.echo(f"{answer['accesses']} reads in {file}")


@trace.command(
    epilog=examples(
        "cachefs trace replay --size 4GiB --latency 0.05 boot.npz",
        "cachefs trace replay --profile debian.profile --png who.png boot.npz",
    )
)
@click.option("--size", default="10%", show_default=True, help="Of L1, as in 10% or 4GiB.")
@click.option("--policy", default="2q", show_default=True, help="What leaves L1.")
@click.option("--chunk-size", type=SizeType(), default=64 * KIB, help="Of the image.  [64KiB]")
@click.option("--latency", type=click.FloatRange(0, 60), default=0.03, show_default=True)
@click.option("--rate", type=SizeType(), default=100_000_000, help="Bytes/s a stream.  [100 MB/s]")
@click.option("--streams", type=click.IntRange(1, 1024), default=8, show_default=True)
@click.option(
    "--arms", default=",".join(_ARMS[:-1]), show_default=True, help="none: nothing ahead."
)
@click.option("--weights", type=Path, help="Of the LSTM, as cachefs train wrote them.")
@click.option("--profile", type=Path, help="What is known before, as cachefs profile exports it.")
@click.option("--learn", type=Path, help="Write there what is known afterwards.")
@click.option("--png", type=Path, help="Draw time against offset, coloured by who served.")
@click.option("--format", "format_name", help="Of the recording; else it is recognised.")
@json_option
@verbose_option
@click.argument("recording", type=Path)
def replay(recording: Path, as_json: bool, png: Path | None, **options: Any) -> None:
    """Replay RECORDING under a virtual clock, through the policies and arms that the daemon runs.

    Chunks of which nothing else is known are each of a content of its own.
    """
    played = _play(recording, png, options)
    if as_json:
        print_json(played)
        return
    arms = played.pop("arms")
    print_table(("", ""), [(name, _text(value)) for name, value in played.items()])
    if arms:
        heads = ("arm", "fetched", "used", "late", "accuracy")
        rows = [
            (name, *(_text(value) for value in figures.values())) for name, figures in arms.items()
        ]
        print_table(heads, rows)


@trace.command(epilog=examples("cachefs trace show --png reads.png boot.npz"))
@click.option("--png", type=Path, required=True, help="Draw time against offset there.")
@click.option("--chunk-size", type=SizeType(), default=64 * KIB, help="Of the image.  [64KiB]")
@click.option("--format", "format_name", help="Of the recording; else it is recognised.")
@verbose_option
@click.argument("recording", type=Path)
def show(recording: Path, png: Path, chunk_size: int, format_name: str | None) -> None:
    """Draw RECORDING: time against offset, coloured by what an L1 without arms would have."""
    options = {
        "size": "10%",
        "policy": "2q",
        "chunk_size": chunk_size,
        "latency": 0.0,
        "rate": 10**12,
        "streams": 1,
        "arms": "none",
        "format_name": format_name,
    }
    _play(recording, png, options)


trace.add_command(simulate, "simulate")


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}"


def _play(recording: Path, png: Path | None, options: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of one replay, and draw it."""
    from cachefs.policy.evict.names import POLICIES  # noqa: PLC0415 - numpy only when needed
    from cachefs.simulate.ahead import Link, Recorded, unlike_keys  # noqa: PLC0415
    from cachefs.simulate.readers import read_requests  # noqa: PLC0415
    from cachefs.simulate.session import coverage, play, trace_of  # noqa: PLC0415

    chunk_bytes = options["chunk_size"]
    check_chunk_bytes(chunk_bytes)
    if options["policy"] not in POLICIES:
        raise UsageError(f"no policy '{options['policy']}': there are {', '.join(POLICIES)}")
    if png is not None:
        from cachefs.simulate.picture import check_possible  # noqa: PLC0415

        check_possible()
    arms = _arms(options["arms"], options.get("weights"))
    requests = read_requests(recording, options["format_name"])
    shown = trace_of(requests, chunk_bytes)
    known = _known(options.get("profile"))
    image = Recorded(chunk_bytes, unlike_keys(shown.chunks))
    slots = _slots(options["size"], shown.distinct, chunk_bytes)
    link = Link(options["latency"], float(options["rate"]), options["streams"])
    plain, _ = play(shown, image, slots, [], link, policy=options["policy"])
    session, learned = play(
        shown, image, slots, arms, link, known, options["policy"], keeps_served=png is not None
    )
    if options.get("learn") is not None:
        _learn(options["learn"], requests.name, chunk_bytes, learned)
    if png is not None:
        from cachefs.simulate.drawing import draw_served  # noqa: PLC0415

        draw_served(requests.name, session.served or [], chunk_bytes, png)
    found, without = session.result, plain.result
    return {
        "accesses": found.accesses,
        "slots": slots,
        "misses": found.misses,
        "misses_without": without.misses,
        "coverage": round(coverage(found, without), 4),
        "accuracy": round(found.whole.accuracy, 4),
        "stall_s": round(found.stall_s, 3),
        "stall_without_s": round(without.stall_s, 3),
        "requests": found.requests,
        "requests_without": without.requests,
        "arms": {
            name: {
                "fetched": tally.fetched,
                "used": tally.used,
                "late": tally.late,
                "accuracy": round(tally.accuracy, 4),
            }
            for name, tally in found.tallies.items()
        },
    }


def _slots(text: str, distinct: int, chunk_bytes: int) -> int:
    from cachefs.simulate.grid import parse_cache_size  # noqa: PLC0415

    size = parse_cache_size(text)
    share = math.floor(distinct * size.share)
    return max(1, size.size_bytes // chunk_bytes if size.size_bytes else share)


def _arms(names: str, weights: Path | None) -> list[Any]:
    from cachefs.policy.prefetch.arms import learning_arms  # noqa: PLC0415
    from cachefs.policy.prefetch.lstm import Weights  # noqa: PLC0415
    from cachefs.policy.prefetch.sequential import Sequential  # noqa: PLC0415

    wanted = [name for name in names.split(",") if name and name != "none"]
    for name in wanted:
        if name not in _ARMS:
            raise UsageError(f"no arm '{name}': there are {', '.join(_ARMS)}")
    if ("lstm" in wanted) != (weights is not None):
        raise UsageError("the arm lstm and --weights go together")
    read = Weights.from_bytes(_bytes_of(weights)) if weights is not None else None
    made: list[Any] = [Sequential()] if "sequential" in wanted else []
    return made + learning_arms(wanted, read)


def _known(path: Path | None) -> dict[str, Any]:
    from cachefs.policy.prefetch.profile import from_bytes  # noqa: PLC0415

    return from_bytes(_bytes_of(path)).sections if path is not None else {}


def _learn(path: Path, name: str, chunk_bytes: int, learned: dict[str, Any]) -> None:
    from cachefs.policy.prefetch.profile import Profile, to_bytes  # noqa: PLC0415

    write_file(path, to_bytes(Profile(name, chunk_bytes, learned, time.time())))


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise NotFoundError(f"cannot read {path}: {error.strerror}") from error


def write_file(path: Path, data: bytes) -> None:
    """Write a file.

    Raises:
        CachefsError: the disk does not let us.
    """
    try:
        path.write_bytes(data)
    except OSError as error:
        raise CachefsError(f"cannot write {path}: {error.strerror}") from error
