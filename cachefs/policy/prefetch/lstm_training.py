"""Training of the LSTM: back-propagation through time in numpy, with Adam.

The network has 24,000 weights; its steps are small matrices, for which numpy takes about as long
as a framework would, and nobody has to install one. See docs/decisions/0061.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from cachefs.errors import UsageError
from cachefs.policy.prefetch.deltas import FEATURES, REGION_CHUNKS, WORDS, Deltas, features_of
from cachefs.policy.prefetch.lstm import HIDDEN, Floats, Weights
from cachefs.policy.prefetch.novelty import Novelty
from cachefs.policy.prefetch.seam import Access, Image

SPAN = 32
"""Steps that an error is carried back."""
BATCH = 16
_RATE = 4e-3
_MOST_GRADIENT = 1.0
_LEAST_STEPS = 2 * SPAN

Steps = tuple[npt.NDArray[np.int64], Floats]
"""Words (n,), and what is known beside them (n, 3)."""


def steps_of(image: Image, accesses: Sequence[Access]) -> Steps:
    """Return what the network would see of accesses, one region after the other."""
    novelty = Novelty()
    regions: dict[int, tuple[Deltas, list[int], list[list[float]]]] = {}
    for access in accesses:
        fresh = novelty.of(image, access)
        if not fresh:
            continue
        number = fresh[0] // REGION_CHUNKS
        deltas, words, beside = regions.setdefault(number, (Deltas(), [], []))
        found = deltas.take(fresh)
        if found is not None:
            words.append(found[1])
            beside.append(features_of(found[0], access.is_hit))
    known = regions.values()
    words = [word for _, in_region, _ in known for word in in_region]
    beside = [row for _, _, in_region in known for row in in_region]
    return np.array(words, np.int64), np.array(beside, np.float32).reshape(-1, 3)


def train(
    sequences: Sequence[Steps],
    epochs: int = 6,
    seed: int = 0,
    progress: Callable[[int, float], None] | None = None,
) -> Weights:
    """Return weights that were trained on sequences; `progress` is told of the loss in nats.

    Raises:
        UsageError: there is too little to learn from.
    """
    usable = [steps for steps in sequences if len(steps[0]) >= _LEAST_STEPS]
    if not usable:
        raise UsageError(f"a recording needs at least {_LEAST_STEPS} reads to learn from")
    rng = np.random.default_rng(seed)
    network = _Network(rng)
    for epoch in range(epochs):
        losses = []
        for words, beside in (usable[at] for at in rng.permutation(len(usable))):
            losses += list(network.epoch(words, beside, _RATE / (1 + epoch)))
        if progress is not None:
            progress(epoch, float(np.mean(losses)))
    return network.weights()


class _Network:
    def __init__(self, rng: np.random.Generator) -> None:
        def small(*shape: int) -> Floats:
            drawn = rng.standard_normal(shape) / np.sqrt(shape[0])
            return np.asarray(drawn, np.float32)

        self.parts = {
            "input": small(FEATURES, 4 * HIDDEN),
            "hidden": small(HIDDEN, 4 * HIDDEN),
            "bias": np.zeros(4 * HIDDEN, np.float32),
            "output": small(HIDDEN, WORDS),
            "output_bias": np.zeros(WORDS, np.float32),
        }
        self.parts["bias"][HIDDEN : 2 * HIDDEN] = 1.0  # it remembers, to begin with
        self._mean = {name: np.zeros_like(part) for name, part in self.parts.items()}
        self._square = {name: np.zeros_like(part) for name, part in self.parts.items()}
        self._turn = 0

    def weights(self) -> Weights:
        return Weights(**{name: part.copy() for name, part in self.parts.items()})

    def epoch(self, words: npt.NDArray[np.int64], beside: Floats, rate: float) -> Sequence[float]:
        """Go once through a sequence, in parallel parts; returns the losses."""
        batch = min(BATCH, len(words) // SPAN)
        length = len(words) // batch
        words = words[: batch * length].reshape(batch, length)
        beside = beside[: batch * length].reshape(batch, length, 3)
        state = np.zeros((batch, HIDDEN), np.float32), np.zeros((batch, HIDDEN), np.float32)
        losses = []
        for begin in range(0, length - 1, SPAN):
            end = min(begin + SPAN, length - 1)
            seen = np.zeros((end - begin, batch, FEATURES), np.float32)
            at, who = np.arange(end - begin)[:, None], np.arange(batch)[None, :]
            seen[at, who, words[:, begin:end].T] = 1
            seen[:, :, WORDS:] = beside[:, begin:end].transpose(1, 0, 2)
            loss, gradients, state = self._span(seen, words[:, begin + 1 : end + 1].T, state)
            self._adjust(gradients, rate)
            losses.append(loss)
        return losses

    def _span(
        self,
        seen: Floats,
        wanted: npt.NDArray[np.int64],
        state: tuple[Floats, Floats],
    ) -> tuple[float, dict[str, Floats], tuple[Floats, Floats]]:
        """Run over a span and back; returns loss, gradients, and the state at the end."""
        parts = self.parts
        hidden, cell = state
        kept: list[tuple[Floats, ...]] = []
        outer = seen @ parts["input"] + parts["bias"]
        for step in outer:
            gates = step + hidden @ parts["hidden"]
            candidate = np.tanh(gates[:, 2 * HIDDEN : 3 * HIDDEN])
            opened = 1 / (1 + np.exp(-np.clip(gates, -30, 30)))
            before = cell
            cell = opened[:, HIDDEN : 2 * HIDDEN] * before + opened[:, :HIDDEN] * candidate
            squashed = np.tanh(cell)
            kept.append((hidden, before, opened, candidate, squashed))
            hidden = opened[:, 3 * HIDDEN :] * squashed
        after = np.stack([row[0] for row in kept[1:]] + [hidden])
        said = after @ parts["output"] + parts["output_bias"]
        said -= said.max(axis=2, keepdims=True)
        chances = np.exp(said)
        chances /= chances.sum(axis=2, keepdims=True)
        steps, batch = wanted.shape
        at, who = np.arange(steps)[:, None], np.arange(batch)[None, :]
        loss = float(-np.log(chances[at, who, wanted] + 1e-9).mean())
        wrong = chances
        wrong[at, who, wanted] -= 1
        wrong /= steps * batch
        gradients = {
            "output": np.einsum("tbh,tbw->hw", after, wrong),
            "output_bias": wrong.sum(axis=(0, 1)),
        }
        into = self._back(wrong @ parts["output"].T, kept)
        gradients["input"] = np.einsum("tbf,tbg->fg", seen, into)
        gradients["hidden"] = np.einsum("tbh,tbg->hg", np.stack([r[0] for r in kept]), into)
        gradients["bias"] = into.sum(axis=(0, 1))
        return loss, gradients, (hidden, cell)

    def _back(self, wrong: Floats, kept: list[tuple[Floats, ...]]) -> Floats:
        """Return the error at the gates, (steps, batch, 4 * HIDDEN)."""
        into = np.zeros((*wrong.shape[:2], 4 * HIDDEN), np.float32)
        hidden_error = np.zeros_like(wrong[0])
        cell_error = np.zeros_like(wrong[0])
        for at in range(len(kept) - 1, -1, -1):
            _, before, opened, candidate, squashed = kept[at]
            enter, forget = opened[:, :HIDDEN], opened[:, HIDDEN : 2 * HIDDEN]
            leave = opened[:, 3 * HIDDEN :]
            hidden_error = hidden_error + wrong[at]
            cell_error = cell_error + hidden_error * leave * (1 - squashed**2)
            gates = into[at]
            gates[:, :HIDDEN] = cell_error * candidate * enter * (1 - enter)
            gates[:, HIDDEN : 2 * HIDDEN] = cell_error * before * forget * (1 - forget)
            gates[:, 2 * HIDDEN : 3 * HIDDEN] = cell_error * enter * (1 - candidate**2)
            gates[:, 3 * HIDDEN :] = hidden_error * squashed * leave * (1 - leave)
            hidden_error = gates @ self.parts["hidden"].T
            cell_error = cell_error * forget
        return into

    def _adjust(self, gradients: dict[str, Floats], rate: float) -> None:
        """Adam (Kingma and Ba, 2015), the gradient clipped."""
        self._turn += 1
        norm = float(np.sqrt(sum(float((each**2).sum()) for each in gradients.values())))
        scale = min(1.0, _MOST_GRADIENT / (norm + 1e-9))
        for name, gradient in gradients.items():
            mean, square = self._mean[name], self._square[name]
            mean += 0.1 * (gradient * scale - mean)
            square += 0.001 * ((gradient * scale) ** 2 - square)
            step = mean / (1 - 0.9**self._turn)
            size = np.sqrt(square / (1 - 0.999**self._turn)) + 1e-8
            self.parts[name] -= (rate * step / size).astype(np.float32)
