"""Policies that are made before anybody reads."""

from pathlib import Path

from cachefs.policy.evict.lru import Lru
from cachefs.policy.evict.names import make_policy
from cachefs.policy.evict.order import Ticks
from cachefs.policy.evict.seam import EvictionPolicy
from cachefs.units import KIB, MIB
from tests.caches import opened_cache


def test_the_first_read_of_a_size_that_was_expected_makes_no_policy(tmp_path: Path) -> None:
    made: list[EvictionPolicy] = []

    def make(_: int) -> EvictionPolicy:
        made.append(make_policy("lru", Ticks()))
        return made[-1]

    with opened_cache(tmp_path / "cache", 32 * MIB) as cache:
        cache.l1.change_policy(make)
        cache.l1.expect([64 * KIB, MIB, 64 * KIB])
        cache.l1.expect([MIB])
        assert len(made) == 2
        assert not cache.l1.classes  # nothing that takes room
        assert cache.l1.class_for(MIB).policy in made
        assert cache.l1.class_for(64 * KIB).policy in made
        cache.l1.expect([64 * KIB])
        assert len(made) == 2


def test_a_policy_that_was_changed_meanwhile_is_not_the_old_one(tmp_path: Path) -> None:
    with opened_cache(tmp_path / "cache", 32 * MIB) as cache:
        cache.l1.change_policy(lambda _: make_policy("sieve", Ticks()))
        cache.l1.expect([64 * KIB])
        cache.l1.change_policy(lambda _: make_policy("lru", Ticks()))
        assert type(cache.l1.class_for(64 * KIB).policy) is Lru
