"""The guard and its shadows: who rules, and why."""

import numpy as np
import pytest

from cachefs.policy.evict.ml.guard import EXPERTS, FIRST, MODEL, Guard
from cachefs.policy.evict.ml.learned import Learned
from cachefs.policy.evict.ml.memory import Features
from cachefs.policy.evict.ml.model_shadow import ModelShadow
from cachefs.policy.evict.ml.round import Round
from cachefs.policy.evict.ml.rows import ROW, Rows, rows_of
from cachefs.policy.evict.ml.shadows import SHADOWS
from cachefs.policy.evict.names import make_policy
from cachefs.policy.evict.order import Ticks
from cachefs.policy.evict.seam import Arrival
from cachefs.simulate.accesses import SPAN, Accesses, numbered
from cachefs.simulate.replay import replay


def mixed(seed: int = 0, popular: int = 3_000) -> Accesses:
    """Popular chunks, a loop, one-off chunks."""
    rng = np.random.default_rng(seed)
    loop = np.arange(4_000) % 300
    parts = [rng.zipf(1.2, 20_000) % popular, loop, rng.integers(0, 400, 5_000)]
    return numbered("mixed", np.concatenate(parts), 65_536)


class ByRecency:
    """A model that does what LRU does; `sign` -1: the contrary."""

    name = "by recency"

    def __init__(self, sign: int = 1) -> None:
        self._sign = sign

    def score(self, features: Features) -> Features:
        return np.asarray(self._sign * features[:, 0])

    def state(self) -> bytes:
        return b""


def ruled_by(model: ByRecency) -> Learned:
    policy = Learned(Ticks())
    policy.adopt(model)
    policy._next_training = 1 << 60
    return policy


def chunks(keys: list[int]) -> Rows:
    return rows_of([Arrival(key, key * SPAN, SPAN) for key in keys])


def take(guard: Guard, keys: list[int], *, hits: bool) -> None:
    guard.take(chunks(keys), np.arange(len(keys)), np.full(len(keys), hits))


def none_held() -> Rows:
    return np.zeros(0, ROW)


@pytest.mark.parametrize("name", SHADOWS)
@pytest.mark.parametrize("slots", [1, 3, 10, 37, 100, 500])
@pytest.mark.parametrize("popular", [200, 3_000])
def test_a_shadow_misses_what_its_policy_misses(name: str, slots: int, popular: int) -> None:
    accesses = mixed(popular=popular)
    found = SHADOWS[name](slots).use_many((accesses.chunks + 1).tolist())
    assert found.count(False) == replay(accesses, slots, make_policy(name, Ticks())).misses


def test_a_shadow_that_is_made_smaller_holds_less() -> None:
    for make in SHADOWS.values():
        shadow = make(100)
        shadow.use_many(range(1, 101))
        shadow.resize(10)
        shadow.use_many([1_000])
        assert shadow.use_many(range(1, 101)).count(True) <= 10


def test_the_models_shadow_misses_what_the_model_would() -> None:
    accesses = mixed()
    shadow = ModelShadow(100, 100, Learned(Ticks()).memory, 0)
    shadow.follow(ByRecency())
    found: list[bool] = []
    for begin in range(0, len(accesses), 50):
        keys = (accesses.chunks[begin : begin + 50] + 1).tolist()
        found += shadow.use_many(chunks(keys), np.arange(begin, begin + len(keys)))
    lru = replay(accesses, 100, make_policy("lru", Ticks())).misses
    assert found.count(False) == pytest.approx(lru, rel=0.03)  # it ranks candidates, not all


def test_the_models_shadow_begins_with_what_is_held_and_can_shrink_and_grow() -> None:
    shadow = ModelShadow(8, 8, Learned(Ticks()).memory, 0)
    shadow.begin(chunks(list(range(1, 13))))
    assert shadow.use_many(chunks(list(range(5, 13))), np.arange(8)) == [True] * 8
    shadow.resize(3, 3)
    shadow.use_many(chunks([50]), np.array([9]))
    assert shadow.use_many(chunks([50, 12, 11, 5]), np.arange(10, 14)) == [True, True, True, False]
    shadow.resize(20, 20)
    shadow.use_many(chunks(list(range(100, 117))), np.arange(20, 37))
    assert shadow.use_many(chunks(list(range(100, 117))), np.arange(40, 57)) == [True] * 17


def test_lru_rules_until_the_model_is_ahead() -> None:
    guard = Guard(64, Learned(Ticks()).memory, 0)
    rng = np.random.default_rng(0)
    for _ in range(40):  # nobody can know
        take(guard, rng.integers(1, 200, 100).tolist(), hits=False)
        assert guard.decide(none_held) == FIRST
    guard.follow(ByRecency(-1))
    for _ in range(30):  # a loop longer than the cache: the contrary of LRU is right
        take(guard, list(range(1, 81)), hits=False)
        if guard.decide(none_held) == MODEL:
            break
    assert guard.ruler == MODEL


def test_a_model_that_loses_is_deposed_and_has_to_prove_more_afterwards() -> None:
    guard = Guard(64, Learned(Ticks()).memory, 0)
    guard.follow(ByRecency(-1))
    guard.begin(MODEL, none_held)
    rng = np.random.default_rng(0)
    for _ in range(60):  # recency is right; L1 says that it misses everything
        take(guard, (rng.geometric(1 / 20, 100) % 200 + 1).tolist(), hits=False)
        guard.decide(none_held)
    assert guard.ruler in EXPERTS
    assert guard.changes >= 1
    assert guard._deposed == 1


def test_what_was_prefetched_proves_nothing() -> None:
    guard = Guard(64, Learned(Ticks()).memory, 0)
    guard.follow(ByRecency())
    guard.begin(MODEL, none_held)
    rows = chunks(list(range(1, 10_001)))
    rows["is_unused"] = True
    guard.take(rows, np.arange(len(rows)), np.ones(len(rows), np.bool_))
    assert set(guard.regret().values()) == {0.0}


def test_large_caches_are_sampled_and_small_ones_are_not() -> None:
    memory = Learned(Ticks()).memory
    assert Guard(4_000, memory, 0).rate == 1
    guard = Guard(100_000, memory, 0)
    assert 1024 <= guard.shadow_slots < 2048
    keys = np.random.default_rng(0).integers(1, 2**63, 200_000).astype(np.uint64)
    assert guard.sampled(keys).mean() == pytest.approx(1 / guard.rate, rel=0.2)
    assert guard.resized(101_000) is guard
    assert guard.resized(1_000).rate == 1


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_bad_model_costs_little(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(seed)
    accesses = numbered("zipf", rng.zipf(1.2, 60_000) % 5_000, 65_536)
    lru = replay(accesses, 300, make_policy("lru", Ticks())).misses
    policy = ruled_by(ByRecency(-1))
    guarded = replay(accesses, 300, policy).misses
    assert policy.guard.ruler in EXPERTS
    monkeypatch.setattr(Guard, "decide", lambda self, held: self.begin(MODEL, held) or MODEL)
    assert replay(accesses, 300, ruled_by(ByRecency(-1))).misses > lru * 1.2
    assert guarded < lru + len(accesses) * 0.005


def test_slots_come_in_turn() -> None:
    turn = Round(3)
    for slots in (1, 2, 7, 100, 4_096, 10_007):
        drawn = np.concatenate([turn.draw(3, slots) for _ in range(0, slots, 3)])
        assert len(np.unique(drawn[:slots])) == min(len(drawn), slots)
        assert drawn.max() < slots
        last = turn.draw(slots // 2, slots)
        every = np.arange(slots)
        assert set(every[turn.was_drawn(every)].tolist()) == set(last.tolist())
    assert np.abs(np.diff(np.sort(turn.draw(512, 10_007)))).max() < 100  # spread


def sliding(accesses: int = 60_000) -> Accesses:
    """Each chunk is wanted for a while and never again: what 2Q found worth keeping is stale."""
    rng = np.random.default_rng(0)
    base = np.arange(accesses) * 6_000 // accesses
    back = np.minimum(rng.geometric(1 / 400, accesses), 3_000)
    return numbered("sliding", base + back, 65_536)


@pytest.mark.parametrize("name", ["2q", "s3fifo"])
def test_who_takes_over_l1_does_what_its_shadow_did(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    accesses = sliding() if name == "2q" else mixed(1)
    slots = 1_500 if name == "2q" else 300
    alone = replay(accesses, slots, make_policy(name, Ticks())).misses
    policy = Learned(Ticks())

    def decide(guard: Guard, held: object) -> str:
        if guard.ruler != name and guard._seen > len(accesses) / 5:
            guard.begin(name, none_held)
        return guard.ruler

    monkeypatch.setattr(Guard, "decide", decide)
    assert replay(accesses, slots, policy).misses < alone * 1.1
    assert policy.guard.ruler == name


def test_a_ruler_whose_l1_is_not_what_its_shadow_is_goes() -> None:
    guard = Guard(64, Learned(Ticks()).memory, 0)
    guard.begin("2q", none_held)
    rng = np.random.default_rng(0)
    for _ in range(60):
        take(guard, rng.integers(1, 71, 100).tolist(), hits=False)  # all shadows are equal
        guard.decide(none_held)
    assert guard.ruler != "2q"
    assert guard._barred["2q"] > 0


def test_the_models_shadow_holds_a_key_once() -> None:
    shadow = ModelShadow(4, 4, Learned(Ticks()).memory, 0)
    shadow.begin(chunks([7, 7, 8, 7]))
    found = shadow.use_many(chunks([7, 8, 1, 2, 3, 4, 5]), np.arange(7))
    assert found == [True, True, False, False, False, False, False]


def test_the_ruler_changes_while_uses_are_not_digested_yet() -> None:
    policy = ruled_by(ByRecency())
    policy.grow(16)
    policy.guard.begin(MODEL, policy._held_rows)
    for key in range(1, 17):
        policy.insert(key - 1, Arrival(key, key * SPAN, SPAN))
    policy.guard.begin("2q", policy._held_rows)  # asks for what is held, which digests
    shadow = policy.guard._of_model
    assert shadow is not None
    assert len(shadow._slot_of) == 16
    assert shadow.use_many(chunks(list(range(100, 200))), np.arange(100)) == [False] * 100


def test_a_cache_that_has_to_grow_is_compared_as_it_will_be() -> None:
    small, growing = Learned(Ticks()), Learned(Ticks(), most_slots=1 << 20)
    for policy in (small, growing):
        policy.grow(1024)
    assert small.guard.rate == 1
    assert growing.guard.rate > 256
    assert growing.guard.shadow_slots >= 1024
    growing.grow(1 << 20)
    assert growing.guard.rate == Learned(Ticks(), most_slots=1 << 20).guard.rate
