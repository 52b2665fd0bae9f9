"""Recordings through the command line: replayed, drawn, learned from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from cachefs.cli.main import cachefs
from cachefs.errors import CachefsError, UsageError
from cachefs.policy.prefetch.lstm import Weights
from cachefs.policy.prefetch.profile import from_bytes

CHUNK = 65536


@pytest.fixture
def boot(tmp_path: Path) -> Path:
    """Two hundred chunks in an order that no stream has, each once."""
    order = np.random.default_rng(3).permutation(2_000)[:200]
    path = tmp_path / "boot.npz"
    np.savez(
        path,
        offset_bytes=order * CHUNK,
        length_bytes=np.full(200, 4096),
        time_us=np.arange(200) * 10_000.0,
    )
    return path


def run(*arguments: str | Path) -> str:
    done = CliRunner().invoke(cachefs, [str(each) for each in arguments], catch_exceptions=True)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return str(done.stdout)


def test_what_one_replay_learned_makes_the_next_one_fast(boot: Path, tmp_path: Path) -> None:
    profile, picture = tmp_path / "boot.profile", tmp_path / "who.png"
    base = ("trace", "replay", "--json", "--size", "1GiB")
    first = json.loads(run(*base, "--learn", profile, boot))
    assert first["misses"] > 150
    assert from_bytes(profile.read_bytes()).working_set_bytes == 200 * CHUNK
    second = json.loads(run(*base, "--profile", profile, "--png", picture, boot))
    assert second["misses"] == 0
    assert second["arms"]["replay"]["accuracy"] == 1.0
    assert second["stall_s"] < 0.1 * second["stall_without_s"]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_slower_store_makes_a_guest_wait_longer(boot: Path) -> None:
    base = ("trace", "replay", "--json", "--arms", "none")
    fast = json.loads(run(*base, "--latency", "0.01", boot))
    slow = json.loads(run(*base, "--latency", "0.1", boot))
    assert slow["stall_s"] == pytest.approx(fast["stall_s"] + 200 * 0.09)
    assert not slow["arms"]
    assert "stall_s" in run("trace", "replay", "--arms", "sequential", boot)


def test_show_draws(boot: Path, tmp_path: Path) -> None:
    run("trace", "show", "--png", tmp_path / "a.png", boot)
    assert (tmp_path / "a.png").stat().st_size > 5_000


def test_simulate_is_there_as_well(boot: Path) -> None:
    assert "lru" in run("trace", "simulate", "--policy", "2q", "--size", "10%", boot)


def test_train_writes_weights_that_replay_takes(boot: Path, tmp_path: Path) -> None:
    weights = tmp_path / "lstm.npz"
    steps = np.cumsum(np.tile([1, 2, 5, -3], 200)) + 10
    trace = tmp_path / "steps.npz"
    np.savez(
        trace,
        offset_bytes=steps * CHUNK,
        length_bytes=np.full(800, CHUNK),
        time_us=np.arange(800) * 10_000.0,
    )
    assert "weights in" in run("train", "--epochs", "2", "--output", weights, trace)
    Weights.from_bytes(weights.read_bytes())
    told = json.loads(
        run("trace", "replay", "--json", "--arms", "lstm", "--weights", weights, boot)
    )
    assert "lstm" in told["arms"]


@pytest.mark.parametrize(
    "wrong",
    [("--arms", "psychic"), ("--policy", "psychic"), ("--arms", "lstm"), ("--size", "big")],
)
def test_wrong_use_is_told(boot: Path, wrong: tuple[str, str]) -> None:
    with pytest.raises((UsageError, AssertionError)):
        run("trace", "replay", *wrong, boot)


def test_files_that_are_none(boot: Path, tmp_path: Path) -> None:
    junk = tmp_path / "junk"
    junk.write_bytes(b"junk")
    for option in ("--profile", "--weights"):
        arms = "lstm" if option == "--weights" else "replay"
        with pytest.raises((CachefsError, AssertionError)):
            run("trace", "replay", "--arms", arms, option, junk, boot)
    with pytest.raises((CachefsError, AssertionError)):
        run("trace", "replay", junk)
