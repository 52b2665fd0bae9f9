from __future__ import annotations

import numpy as np

from cachefs.policy.prefetch.clusters import SKETCH_KEYS, neighbour, resemblance, sketch_of
from cachefs.policy.prefetch.learner import SECTIONS, Rows
from cachefs.policy.prefetch.seam import Keys
from cachefs.simulate.ahead import Recorded, unlike_keys

KEYS = unlike_keys(20_000)


def replay_of(keys: Keys) -> Rows:
    rows = np.zeros(len(keys), SECTIONS["replay"])
    rows["key"], rows["which"] = keys, 0b1111
    return rows


def test_resemblance_is_about_the_jaccard_index() -> None:
    one, other = sketch_of(replay_of(KEYS[:3_000])), sketch_of(replay_of(KEYS[1_000:4_000]))
    assert len(one) == SKETCH_KEYS
    assert abs(resemblance(one, other) - 0.5) < 0.15
    assert resemblance(one, one) == 1.0
    assert resemblance(one, sketch_of(replay_of(KEYS[10_000:13_000]))) == 0.0
    assert resemblance(one, one[:0]) == 0.0


def test_an_unknown_image_has_the_neighbour_whose_content_it_has_most_of() -> None:
    sketches = {
        "debian": sketch_of(replay_of(KEYS[:1_000])),
        "debian-old": sketch_of(replay_of(np.concatenate((KEYS[:500], KEYS[9_000:9_500])))),
        "windows": sketch_of(replay_of(KEYS[15_000:16_000])),
        "tiny": sketch_of(replay_of(KEYS[:3])),
    }
    new_debian = Recorded(65536, np.concatenate((KEYS[:900], unlike_keys(3_000, seed=5))))
    found = neighbour(new_debian, sketches)
    assert found is not None
    assert found[0] == "debian"
    assert 0.8 < found[1] <= 1.0
    assert neighbour(Recorded(65536, unlike_keys(500, seed=8)), sketches) is None


def test_what_was_seen_seldom_is_in_no_sketch() -> None:
    rows = replay_of(KEYS[:100])
    rows["which"][50:] = 0b1000
    assert set(sketch_of(rows).tolist()) == set(KEYS[:50].tolist())
    assert not len(sketch_of(rows[:0]))
