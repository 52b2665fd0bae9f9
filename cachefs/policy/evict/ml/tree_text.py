"""Trees as LightGBM writes them as text, checked before LightGBM reads them.

LightGBM believes its files: a node that is its own child is an endless loop there, and a length
that is wrong ends the process. So what comes from elsewhere is read here, and written anew from
numbers that hold together; nothing else of the text is passed on.
"""

from __future__ import annotations

import math
import re

_MOST_TREES = 100
_MOST_LEAVES = 64
"""Five and three times what is trained here: scoring is on the event loop, so it has a bound."""
_NUMBER = re.compile(r"-?\d{1,20}(\.\d{1,30})?(e[+-]?\d{1,3})?", re.ASCII)
_DECISIONS = frozenset({0, 2, 4, 6, 8, 10})
"""Numerical splits: the side of a missing value (2), and what is one: none, zero (4), NaN (8)."""
_HEADER = """tree
version=v4
num_class=1
num_tree_per_iteration=1
label_index=0
max_feature_idx={last}
objective=cross_entropy
feature_names={names}
feature_infos={infos}
tree_sizes={sizes}

"""
_SIGNS = ("version=v4", "num_class=1", "num_tree_per_iteration=1", "objective=cross_entropy")


def checked_trees(text: bytes, features: int) -> bytes:
    """Return the same trees, as a text that LightGBM can be given.

    Raises:
        ValueError: this is none, or not one that is trained here.
    """
    head, *rest = text.decode("ascii").partition("\nend of trees")[0].split("\nTree=")
    lines = head.splitlines()
    if not lines or lines[0] != "tree" or not set(_SIGNS) <= set(lines):
        raise ValueError("these are no trees that cachefs has trained")
    if f"max_feature_idx={features - 1}" not in lines:
        raise ValueError("this model is for other features")
    if not 0 < len(rest) <= _MOST_TREES:
        raise ValueError(f"a model of {len(rest)} trees")
    trees = [_checked_tree(number, tree, features) for number, tree in enumerate(rest)]
    header = _HEADER.format(
        last=features - 1,
        names=" ".join(f"Column_{number}" for number in range(features)),
        infos=" ".join(["[-1:1]"] * features),
        sizes=" ".join(str(len(tree)) for tree in trees),
    )
    return f"{header}{''.join(trees)}end of trees\n".encode("ascii")


def _checked_tree(number: int, text: str, features: int) -> str:
    fields = dict(line.split("=", 1) for line in text.splitlines()[1:] if "=" in line)
    leaves = _integers(fields, "num_leaves", 1)[0]
    if not 1 <= leaves <= _MOST_LEAVES:
        raise ValueError(f"a tree of {leaves} leaves")
    if (fields["num_cat"], fields["is_linear"]) != ("0", "0"):
        raise ValueError("a tree of another kind")
    nodes = leaves - 1
    wanted = _integers(fields, "split_feature", nodes)
    decisions = _integers(fields, "decision_type", nodes)
    left, right = _integers(fields, "left_child", nodes), _integers(fields, "right_child", nodes)
    if not all(0 <= feature < features for feature in wanted) or not {*decisions} <= _DECISIONS:
        raise ValueError("a split by something that there is not")
    _check_shape(left, right, leaves)
    rows = {
        "num_leaves": str(leaves),
        "num_cat": "0",
        "split_feature": _joined(wanted),
        "threshold": " ".join(_numbers(fields, "threshold", nodes, besides="inf")),
        "decision_type": _joined(decisions),
        "left_child": _joined(left),
        "right_child": _joined(right),
        "leaf_value": " ".join(_numbers(fields, "leaf_value", leaves)),
        "is_linear": "0",
        "shrinkage": "1",
    }
    return f"Tree={number}\n" + "".join(f"{key}={row}\n" for key, row in rows.items()) + "\n\n"


def _check_shape(left: list[int], right: list[int], leaves: int) -> None:
    """See that it is a tree: all is reached, once, and every node comes after its parent."""
    nodes = len(left)
    reached = sorted(left + right)
    is_onward = all(
        child < 0 or child > node
        for node, pair in enumerate(zip(left, right, strict=True))
        for child in pair
    )
    whole = [*range(-leaves, 0), *range(1, nodes)] if nodes else []
    if reached != whole or not is_onward:
        raise ValueError("nodes that are no tree")


def _numbers(fields: dict[str, str], key: str, count: int, besides: str = "") -> list[str]:
    """Return numbers, unchanged. `besides`: a split between a missing value and any is at inf."""
    found = fields[key].split(" ") if fields[key] else []
    is_sound = all(
        one == besides or (_NUMBER.fullmatch(one) and math.isfinite(float(one))) for one in found
    )
    if len(found) != count or not is_sound:
        raise ValueError(f"{key} of a tree is not {count} numbers")
    return found


def _integers(fields: dict[str, str], key: str, count: int) -> list[int]:
    return [int(one) for one in _numbers(fields, key, count)]


def _joined(numbers: list[int]) -> str:
    return " ".join(map(str, numbers))
