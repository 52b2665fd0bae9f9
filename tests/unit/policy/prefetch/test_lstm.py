from __future__ import annotations

import io
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cachefs.errors import FormatError, UsageError
from cachefs.policy.prefetch.deltas import OTHER, WORDS, Deltas
from cachefs.policy.prefetch.lstm import HIDDEN, STEPS_PER_S, Lstm, Weights, _Region
from cachefs.policy.prefetch.lstm_training import _Network, steps_of, train
from cachefs.policy.prefetch.seam import Access
from cachefs.simulate.ahead import Recorded, unlike_keys

IMAGE = Recorded(65536, unlike_keys(100_000))


def zigzag(count: int) -> list[Access]:
    """Two up, one down, and now and then a jump that comes again: first order is not enough."""
    chunk, accesses = 5, []
    for at in range(count):
        accesses.append(Access(at / 100, 1, chunk, 1))
        chunk += (2, 2, -1, 40)[at % 4]
    return accesses


@pytest.fixture(scope="module")
def weights() -> Weights:
    return train([steps_of(IMAGE, zigzag(6_000))], epochs=30)


def test_words_of_deltas() -> None:
    deltas = Deltas()
    assert deltas.take([10]) is None
    assert deltas.take([11, 12]) == (1, deltas.word(1))
    far = deltas.take([512])
    assert far == (500, OTHER)
    assert deltas.take([1_012]) == (500, deltas.word(500))
    assert deltas.word(500) != OTHER
    assert deltas.meaning(deltas.word(500)) == 500
    assert all(abs(deltas.meaning(word)) <= 500 for word in range(WORDS))


def test_a_pattern_is_learned_and_holds_elsewhere(weights: Weights) -> None:
    arm = Lstm(weights=weights)
    right = said = 0
    accesses = [read._replace(first=read.first + 30_000) for read in zigzag(3_000)]
    for read, following in pairwise(accesses):
        for wish in arm.observe(IMAGE, read):
            said += 1
            right += wish.first == following.first
    assert said > 500
    assert right > 0.9 * said


def test_it_is_silent_without_weights() -> None:
    arm = Lstm()
    assert not [wish for read in zigzag(500) for wish in arm.observe(IMAGE, read)]


def test_steps_have_a_budget(weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    """100,000 reads in a second, each of a new chunk."""
    arm = Lstm(weights=weights)
    steps: list[int] = []
    accesses = [Access(at / 100_000, 1, at % 90_000, 1) for at in range(20_000)]
    step = _Region.step

    def counted(*args: Any) -> Any:
        steps.append(1)
        return step(*args)

    monkeypatch.setattr(_Region, "step", counted)
    for read in accesses:
        arm.observe(IMAGE, read)
    assert 10 < len(steps) < STEPS_PER_S * 0.2 + 60


def test_gradients_are_those_of_the_loss() -> None:
    """Compared with differences, weight by weight."""
    rng = np.random.default_rng(2)
    network = _Network(rng)
    seen = rng.standard_normal((5, 3, 24)).astype(np.float32)
    wanted = rng.integers(0, WORDS, (5, 3))
    state = np.zeros((3, HIDDEN), np.float32), np.zeros((3, HIDDEN), np.float32)
    for name, part in network.parts.items():
        network.parts[name] = part.astype(np.float64)
    _, gradients, _ = network._span(seen, wanted, state)
    for name, part in network.parts.items():
        for at in rng.integers(0, part.size, 6).tolist():
            where = np.unravel_index(at, part.shape)
            before = part[where]
            losses = []
            for step in (1e-4, -1e-4):
                part[where] = before + step
                losses.append(network._span(seen, wanted, state)[0])
            part[where] = before
            slope = (losses[0] - losses[1]) / 2e-4
            assert gradients[name][where] == pytest.approx(slope, abs=2e-4), name


def test_weights_come_back(weights: Weights) -> None:
    again = Weights.from_bytes(weights.to_bytes())
    assert np.array_equal(again.hidden, weights.hidden)
    assert np.array_equal(again.output, weights.output)


def test_training_is_repeatable(weights: Weights) -> None:
    again = train([steps_of(IMAGE, zigzag(6_000))], epochs=30)
    assert np.array_equal(again.hidden, weights.hidden)


def test_too_little_to_learn_from() -> None:
    with pytest.raises(UsageError, match="at least"):
        train([steps_of(IMAGE, zigzag(10))])


@given(data=st.binary(max_size=300))
def test_garbage_is_no_weights(data: bytes) -> None:
    with pytest.raises(FormatError):
        Weights.from_bytes(data)


@example(at=266, flip=1, cut=False)
@given(at=st.integers(0, 10**6), flip=st.integers(1, 255), cut=st.booleans())
@settings(max_examples=150)
def test_damaged_weights_are_refused_or_harmless(at: int, flip: int, cut: bool) -> None:
    zeros = {
        "input": np.zeros((24, 256), np.float32),
        "hidden": np.zeros((64, 256), np.float32),
        "bias": np.zeros(256, np.float32),
        "output": np.zeros((64, 21), np.float32),
        "output_bias": np.zeros(21, np.float32),
    }
    data = bytearray(Weights(**zeros).to_bytes())
    data[at % len(data)] ^= flip
    if cut:
        del data[at % len(data) :]
    try:
        found = Weights.from_bytes(bytes(data))
    except FormatError:
        return
    assert all(np.isfinite(getattr(found, name)).all() for name in zeros)


def test_weights_of_another_shape_are_refused() -> None:
    file = io.BytesIO()
    np.savez(file, version=np.int64(1), input=np.zeros((3, 3), np.float32))
    with pytest.raises(FormatError):
        Weights.from_bytes(file.getvalue())
