"""Models: from what is known of a chunk to the chance that it is not wanted soon.

Both learn from the same samples. A label is soft: how far the wait was beyond the boundary, as a
chance, so that a wait just beyond it and one far beyond are not the same.
"""

from __future__ import annotations

import ctypes
import json
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cachefs.policy.evict.ml.memory import FEATURES, Features
from cachefs.policy.evict.ml.tree_text import checked_trees

Scores = npt.NDArray[np.float32]
"""(chunks,): the chance that a chunk is not wanted before the boundary."""

SOFTNESS = 0.75
"""A wait of twice the boundary is a chance of 0.68; of 16 times, 0.95. Measured: 0.5 and 1.0 are as
good (docs/decisions/0021)."""

_TREES = 20
_LEAVES = 20
_LEARNING_RATE = 0.2
MOST_STATE_BYTES = 2**20
"""Trees take some 50 kB as text. What is longer is not looked at, wherever it comes from."""
_MOST_LOGISTIC_BYTES = 16 * 1024


class Model(Protocol):
    """Scores chunks. A model never changes once it is made."""

    name: str

    def score(self, features: Features) -> Scores:
        """Return the chances of these chunks."""
        ...

    def state(self) -> bytes:
        """Return all of it, for `load`."""
        ...


def soft_labels(after: npt.NDArray[np.float32], boundary: float) -> npt.NDArray[np.float32]:
    """Return the chance that a chunk counts as not wanted soon, by how long it took."""
    beyond = np.log2(np.maximum(after, 1)) - np.log2(boundary)
    return np.asarray(1 / (1 + np.exp2(-SOFTNESS * beyond)), np.float32)


class Logistic:
    """Logistic regression over standardised features, by stochastic gradient descent."""

    name = "logistic"

    def __init__(
        self,
        weights: npt.NDArray[np.float32],
        mean: npt.NDArray[np.float32],
        scale: npt.NDArray[np.float32],
    ) -> None:
        self._weights = weights
        self._mean = mean
        self._scale = scale

    def score(self, features: Features) -> Scores:
        """See Model."""
        raw = self._standard(features) @ self._weights[1:] + self._weights[0]
        return np.asarray(1 / (1 + np.exp(-raw)), np.float32)

    def state(self) -> bytes:
        """See Model."""
        rows = (self._weights, self._mean, self._scale)
        return json.dumps([row.tolist() for row in rows]).encode()

    @classmethod
    def of_state(cls, state: bytes) -> Logistic:
        """Return the model that `state` was taken of."""
        if len(state) > _MOST_LOGISTIC_BYTES:
            raise ValueError("a model that is larger than any")
        weights, mean, scale = (np.array(row, np.float32) for row in json.loads(state))
        lengths = (len(FEATURES) + 1, len(FEATURES), len(FEATURES))
        if tuple(row.shape for row in (weights, mean, scale)) != tuple((n,) for n in lengths):
            raise ValueError("this model is for other features")
        if not all(np.isfinite(row).all() for row in (weights, mean, scale)) or scale.min() <= 0:
            raise ValueError("this model has no sound numbers")
        return cls(weights, mean, scale)

    @classmethod
    def train(
        cls, features: Features, labels: npt.NDArray[np.float32], before: Model | None, seed: int
    ) -> Logistic:
        """Return a model that goes on from `before`, if that is one of its kind."""
        mean = features.mean(0)
        scale = np.maximum(features.std(0), 1e-3)
        weights = np.zeros(len(FEATURES) + 1, np.float32)
        if isinstance(before, Logistic):
            weights = before._weights.copy()
        model = cls(weights, mean, scale)
        rows = model._standard(features)
        rng = np.random.default_rng(seed)
        for step in range(4):
            order = rng.permutation(len(rows))
            for batch in np.array_split(order, max(1, len(order) // 64)):
                error = labels[batch] - 1 / (1 + np.exp(-(rows[batch] @ weights[1:] + weights[0])))
                rate = 0.1 / (1 + step)
                weights[0] += rate * error.mean()
                weights[1:] += rate * (error @ rows[batch] / len(batch))
        return model

    def _standard(self, features: Features) -> Features:
        return np.asarray(np.clip((features - self._mean) / self._scale, -5, 5), np.float32)


class Trees:
    """Gradient-boosted trees (LightGBM, NIPS'17)."""

    name = "trees"

    def __init__(self, state: bytes) -> None:
        """Take a model as LightGBM writes it as text.

        Raises:
            ValueError: it is none, or for other features.
        """
        import lightgbm  # noqa: PLC0415 - half a second and 60 MB, only for whoever uses it

        try:
            self._booster = lightgbm.Booster(model_str=state.decode())
        except lightgbm.basic.LightGBMError as error:
            raise ValueError(f"LightGBM does not take this model: {error}") from error
        if self._booster.num_feature() != len(FEATURES):
            raise ValueError("this model is for other features")
        self._state = state
        self._call = lightgbm.basic._LIB.LGBM_BoosterPredictForMat  # type: ignore[attr-defined]
        self._handle = self._booster._handle

    def score(self, features: Features) -> Scores:
        """See Model. By LightGBM's C interface: its Python one takes longer than the trees."""
        rows = np.ascontiguousarray(features, np.float32)
        found = np.empty(len(rows), np.float64)
        length = ctypes.c_int64()
        failed = self._call(
            self._handle,
            ctypes.c_void_p(rows.ctypes.data),
            0,  # float32
            ctypes.c_int32(len(rows)),
            ctypes.c_int32(rows.shape[1]),
            1,  # row by row
            0,  # the chance, not the raw score
            0,
            -1,  # all trees
            b"num_threads=1",
            ctypes.byref(length),
            ctypes.c_void_p(found.ctypes.data),
        )
        if failed:
            raise RuntimeError("LightGBM cannot score")
        return found.astype(np.float32)

    def state(self) -> bytes:
        """See Model."""
        return self._state

    @classmethod
    def train(
        cls, features: Features, labels: npt.NDArray[np.float32], _before: Model | None, seed: int
    ) -> Trees:
        """Return a new model. LightGBM releases the GIL while it works."""
        import lightgbm  # noqa: PLC0415

        settings = {
            "objective": "cross_entropy",
            "num_leaves": _LEAVES,
            "learning_rate": _LEARNING_RATE,
            "min_data_in_leaf": 20,
            "max_bin": 127,
            "feature_fraction": 0.9,
            "num_threads": 1,
            "seed": seed,
            "deterministic": True,
            "verbose": -1,
        }
        data = lightgbm.Dataset(features, labels, params={"verbose": -1, "max_bin": 127})
        booster = lightgbm.train(settings, data, _TREES)
        return cls(booster.model_to_string(num_iteration=-1).encode())


def load(name: str, state: bytes) -> Model:
    """Return a model from its name and state.

    Raises:
        ValueError: there is no such model, or this is none.
    """
    state = checked(name, state)
    return Trees(state) if name == Trees.name else Logistic.of_state(state)


def checked(name: str, state: bytes) -> bytes:
    """Return a state that is safe to load. No library has seen it for that.

    Raises:
        ValueError: there is no such model, or this is none.
    """
    if len(state) > MOST_STATE_BYTES:
        raise ValueError("a model that is larger than any")
    if name == Trees.name:
        return checked_trees(state, len(FEATURES))
    if name == Logistic.name:
        Logistic.of_state(state)
        return state
    raise ValueError(f"no model '{name}'")
