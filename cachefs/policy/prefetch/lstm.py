"""LSTM: a small recurrent network over the deltas between chunks (as Hashemi et al., ICML'18).

64 hidden units; it sees words of deltas (deltas.py), so that one set of weights holds for all
images. It is trained elsewhere (`cachefs train`), and is silent without weights. A step costs some
15 us; an image has so many steps a second, so that it never takes more than a percent of a core:
under more load it passes over the rest. What it says is measured like that of all arms.

The file of weights is an npz of float32 arrays, with i, f, g, o in this order along the last axis:

    version ()               1
    input   (24, 256)        one row a word, then three for the size, direction, hit
    hidden  (64, 256)
    bias    (256,)
    output  (64, 21), output_bias (21,)
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cachefs.errors import FormatError
from cachefs.policy.prefetch.calibration import Calibration
from cachefs.policy.prefetch.deltas import (
    FEATURES,
    OTHER,
    REGION_CHUNKS,
    WORDS,
    Deltas,
    features_of,
)
from cachefs.policy.prefetch.learner import FLOOR
from cachefs.policy.prefetch.novelty import Novelty
from cachefs.policy.prefetch.seam import NOTHING, Access, Image, Wish
from cachefs.policy.prefetch.wishes import merged

HIDDEN = 64
VERSION = 1
STEPS_PER_S = 500.0
"""Of an image: 1% of a core, measured at 15 to 20 us a step."""
_MOST_CREDIT = 50.0
_LEVELS = 8
_MOST_REGIONS = 64
_LEAST_CHANCE = 0.3
_MOST_WEIGHT = 1e3
_MOST_FILE_BYTES = 2**20

Floats = npt.NDArray[np.float32]

_SHAPES = {
    "input": (FEATURES, 4 * HIDDEN),
    "hidden": (HIDDEN, 4 * HIDDEN),
    "bias": (4 * HIDDEN,),
    "output": (HIDDEN, WORDS),
    "output_bias": (WORDS,),
}


@dataclass(frozen=True, slots=True)
class Weights:
    """See the module."""

    input: Floats
    hidden: Floats
    bias: Floats
    output: Floats
    output_bias: Floats

    def to_bytes(self) -> bytes:
        """Return the file."""
        file = io.BytesIO()
        parts = {name: getattr(self, name) for name in _SHAPES}
        np.savez(file, version=np.int64(VERSION), **parts)
        return file.getvalue()

    @staticmethod
    def from_bytes(data: bytes) -> Weights:
        """Return the weights of a file.

        Raises:
            FormatError: it is none, damaged, of another version or shape.
        """
        if len(data) > _MOST_FILE_BYTES:
            raise FormatError("a file of weights is smaller than that")
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                if int(file["version"]) != VERSION:
                    raise ValueError(f"version {file['version']}")
                parts = {name: np.asarray(file[name]) for name in _SHAPES}
        except Exception as error:  # of numpy, zipfile, zlib, tokenize: whoever stumbles first
            raise FormatError(f"these are no weights of cachefs: {error}") from error
        for name, shape in _SHAPES.items():
            part = parts[name]
            if part.shape != shape or part.dtype != np.float32:
                raise FormatError(f"the weights '{name}' have shape {part.shape}, not {shape}")
            if not (np.abs(part) <= _MOST_WEIGHT).all():
                raise FormatError(f"the weights '{name}' are out of bounds")
        return Weights(**parts)


class _Region:
    """The network over one region of an image."""

    __slots__ = ("cell", "deltas", "hidden")

    def __init__(self) -> None:
        self.deltas = Deltas()
        self.hidden = np.zeros(HIDDEN, np.float32)
        self.cell = np.zeros(HIDDEN, np.float32)

    def step(self, weights: Weights, delta: int, word: int, is_hit: bool) -> Floats:
        """Return the chance of each word to come next."""
        size, direction, hit = features_of(delta, is_hit)
        rows = weights.input
        gates = self.hidden @ weights.hidden
        gates += weights.bias
        gates += rows[word]
        gates += size * rows[WORDS] + direction * rows[WORDS + 1] + hit * rows[WORDS + 2]
        candidate = np.tanh(gates[2 * HIDDEN : 3 * HIDDEN])
        gates = 1 / (1 + np.exp(-np.clip(gates, -30, 30)))
        self.cell = gates[HIDDEN : 2 * HIDDEN] * self.cell + gates[:HIDDEN] * candidate
        self.hidden = gates[3 * HIDDEN :] * np.tanh(self.cell)
        said = np.exp(np.clip(self.hidden @ weights.output + weights.output_bias, -30, 30))
        chances: Floats = said / said.sum()
        return chances


class _Watched:
    """One open image."""

    def __init__(self, time_s: float) -> None:
        self.calibration = Calibration(_LEVELS * WORDS)
        self.credit = _MOST_CREDIT
        self.time_s = time_s
        self._regions: dict[int, _Region] = {}

    def region(self, chunk: int) -> _Region:
        """Return the region that a chunk is in; those read last are kept."""
        number = chunk // REGION_CHUNKS
        region = self._regions.pop(number, None) or _Region()
        self._regions[number] = region
        if len(self._regions) > _MOST_REGIONS:
            del self._regions[next(iter(self._regions))]
        return region

    def may_step(self, now_s: float) -> bool:
        """Return whether there is budget for a step, and take it."""
        earned = max(0.0, now_s - self.time_s) * STEPS_PER_S
        self.credit = min(_MOST_CREDIT, self.credit + earned)
        self.time_s = max(self.time_s, now_s)
        if self.credit < 1:
            return False
        self.credit -= 1
        return True


class Lstm:
    """See Arm."""

    name = "lstm"

    def __init__(
        self,
        novelty: Novelty | None = None,
        floor: float = FLOOR,
        weights: Weights | None = None,
    ) -> None:
        self.weights = weights
        self._novelty = novelty or Novelty()
        self._floor = floor
        self._watched: dict[Image, _Watched] = {}

    def opened(self, image: Image, time_s: float) -> Sequence[Wish]:
        """See Arm."""
        return NOTHING

    def observe(self, image: Image, access: Access) -> Sequence[Wish]:
        """See Arm."""
        weights = self.weights
        if weights is None:
            return NOTHING
        fresh = self._novelty.of(image, access)
        if not fresh:
            return NOTHING
        watched = self._watched.get(image)
        if watched is None:
            watched = self._watched[image] = _Watched(access.time_s)
        watched.calibration.seen(fresh)
        region = watched.region(fresh[0])
        found = region.deltas.take(fresh)
        if found is None or not watched.may_step(access.time_s):
            return NOTHING
        chances = region.step(weights, *found, access.is_hit)
        return merged(self._expected(image, watched, region.deltas, chances), image.chunks)

    def _expected(
        self, image: Image, watched: _Watched, deltas: Deltas, chances: Floats
    ) -> list[tuple[int, float]]:
        word = int(chances.argmax())
        chance = float(chances[word])
        delta = deltas.meaning(word)
        if word == OTHER or chance < _LEAST_CHANCE or not delta:
            return []
        ahead = deltas.chunk + delta
        if not 0 <= ahead < image.chunks or ahead in self._novelty.recent(image):
            return []
        kind = word * _LEVELS + min(_LEVELS - 1, int(chance * _LEVELS))
        return watched.calibration.expect([(ahead, kind)], self._floor)

    def judged(self, image: Image, chunk: int, was_used: bool) -> None:
        """See Arm."""
        watched = self._watched.get(image)
        if watched is not None:
            watched.calibration.judged(chunk, was_used)

    def closed(self, image: Image, time_s: float) -> None:
        """See Arm."""
        self._watched.pop(image, None)
        self._novelty.forget(image)
