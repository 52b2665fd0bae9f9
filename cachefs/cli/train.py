"""The command that trains the LSTM."""

from __future__ import annotations

from pathlib import Path

import click

from cachefs.cli.display import say
from cachefs.cli.options import SizeType, examples
from cachefs.cli.trace import write_file
from cachefs.cli.verbosity import verbose_option
from cachefs.model.chunk import check_chunk_bytes
from cachefs.units import KIB


@click.command(
    "train", epilog=examples("cachefs train --output lstm.npz monday.npz tuesday.npz boot.npz")
)
@click.option("--output", type=Path, required=True, help="The file of weights to write.")
@click.option("--chunk-size", type=SizeType(), default=64 * KIB, help="Of the images.  [64KiB]")
@click.option("--epochs", type=click.IntRange(1, 1000), default=6, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option(
    "--requests",
    type=click.IntRange(1),
    default=200_000,
    show_default=True,
    help="Of each, at most.",
)
@verbose_option
@click.argument("recordings", type=Path, nargs=-1, required=True)
def train_command(
    output: Path,
    chunk_size: int,
    epochs: int,
    seed: int,
    requests: int,
    recordings: tuple[Path, ...],
) -> None:
    """Train the LSTM that predicts reads on RECORDINGS; see prefetch.lstm_weights."""
    from cachefs.policy.prefetch.lstm_training import steps_of, train  # noqa: PLC0415 - numpy
    from cachefs.simulate.ahead import Recorded, unlike_keys  # noqa: PLC0415
    from cachefs.simulate.readers import read_requests  # noqa: PLC0415
    from cachefs.simulate.session import trace_of  # noqa: PLC0415

    check_chunk_bytes(chunk_size)
    sequences = []
    for path in recordings:
        shown = trace_of(read_requests(path), chunk_size, requests)
        image = Recorded(chunk_size, unlike_keys(shown.chunks))
        sequences.append(steps_of(image, shown.reads()))

    def progress(epoch: int, loss: float) -> None:
        say(f"epoch {epoch + 1} of {epochs}: loss {loss:.4f}")

    weights = train(sequences, epochs, seed, progress)
    write_file(output, weights.to_bytes())
    click.echo(f"{sum(len(words) for words, _ in sequences):,} steps; weights in {output}")
