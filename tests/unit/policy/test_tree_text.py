"""Trees from elsewhere: the same scores, or refused before LightGBM has seen them."""

import numpy as np
import pytest

from cachefs.policy.evict.ml.memory import FEATURES, Features
from cachefs.policy.evict.ml.models import Trees
from cachefs.policy.evict.ml.tree_text import checked_trees

COUNT = len(FEATURES)


def rows(seed: int) -> Features:
    rng = np.random.default_rng(seed)
    features = rng.random((2000, COUNT), np.float32) * 3 - 1
    features[rng.random(features.shape) < 0.1] = np.nan
    return features


@pytest.fixture(scope="module")
def trained() -> Trees:
    features = rows(0)
    labels = np.clip(np.nan_to_num(features[:, 0] * features[:, 1]), 0, 1)
    return Trees.train(features, labels, None, 0)


def test_checked_trees_score_the_same(trained: Trees) -> None:
    text = checked_trees(trained.state(), COUNT)
    assert np.array_equal(Trees(text).score(rows(1)), trained.score(rows(1)))
    assert checked_trees(text, COUNT) == text
    assert len(text) < len(trained.state())


def test_a_tree_of_one_leaf_is_one() -> None:
    model = Trees.train(rows(0), np.full(2000, 0.5, np.float32), None, 0)
    text = checked_trees(model.state(), COUNT)
    assert np.array_equal(Trees(text).score(rows(1)), model.score(rows(1)))


@pytest.mark.parametrize(
    ("key", "first"),
    [
        ("left_child", "0"),  # an endless loop
        ("left_child", "99"),
        ("right_child", "-99"),
        ("split_feature", "1000000000"),
        ("split_feature", "-1"),
        ("decision_type", "1"),
        ("num_leaves", "2000000000"),
        ("num_leaves", "0"),
        ("num_cat", "1"),
        ("threshold", "nan"),
        ("threshold", "1 2"),
        ("leaf_value", "1e999"),
        ("leaf_value", "1_0"),
        ("is_linear", "1"),
        ("max_feature_idx", "3"),
        ("objective", "regression"),
    ],
)
def test_what_would_harm_is_refused(trained: Trees, key: str, first: str) -> None:
    text = trained.state().decode()
    begin = text.index(f"\n{key}=") + len(key) + 2
    end = min(text.find(mark, begin) for mark in (" ", "\n") if text.find(mark, begin) > 0)
    with pytest.raises(ValueError, match=r".+"):
        checked_trees((text[:begin] + first + text[end:]).encode(), COUNT)


def test_lengths_that_the_text_claims_are_not_passed_on(trained: Trees) -> None:
    text = trained.state().decode().replace("tree_sizes=", "tree_sizes=2000000000 ", 1)
    assert checked_trees(text.encode(), COUNT) == checked_trees(trained.state(), COUNT)


def test_too_many_trees_are_refused(trained: Trees) -> None:
    text = trained.state().decode()
    begin, end = text.index("\nTree=0"), text.index("\nend of trees")
    with pytest.raises(ValueError, match="a model of 120 trees"):
        checked_trees((text[:begin] + text[begin:end] * 6 + text[end:]).encode(), COUNT)
