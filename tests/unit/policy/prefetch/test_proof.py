"""Whether a start follows a profile, or meets it by chance."""

from __future__ import annotations

from random import Random

import numpy as np

from cachefs.policy.prefetch.proof import Proof


def test_what_comes_in_order_is_proof() -> None:
    proof = Proof()
    for place in range(100):
        proof.came(place, asked=48)
    assert proof.chunks == 100


def test_a_start_does_many_things_at_once() -> None:
    proof, chance = Proof(), Random(1)
    places = sorted(range(400), key=lambda place: place + chance.random() * 60)
    for place in places:
        proof.came(place, asked=48)
    assert proof.chunks > 300


def test_what_is_known_from_anywhere_is_chance() -> None:
    proof, chance = Proof(), Random(1)
    for place in chance.sample(range(5_000), 1_000):
        proof.came(place, asked=48)
        assert proof.chunks < 4


def test_surprises_speak_against_it() -> None:
    proof = Proof()
    for place in range(20):
        proof.came(place, asked=48)
    for _ in range(18):
        proof.surprised()
    assert not proof.chunks


def test_what_was_touched_before_the_plan_is_weighed_in_the_same_way() -> None:
    proof = Proof()
    proof.begin_anew(np.arange(64)[::-1], asked=0, surprises=2)
    assert proof.chunks == 64
    proof.begin_anew(np.arange(0, 6_400, 100), asked=0, surprises=0)
    assert not proof.chunks
