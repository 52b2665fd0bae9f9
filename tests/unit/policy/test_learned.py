"""The policy that learns, its parts, and what it learns."""

import struct
import time
import zlib

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cachefs.policy.evict.ml import samples as samples_module
from cachefs.policy.evict.ml.guard import EXPERTS, FIRST, MODEL, Guard
from cachefs.policy.evict.ml.learned import Learned
from cachefs.policy.evict.ml.memory import FEATURES, Features, Memory
from cachefs.policy.evict.ml.models import Logistic, Model, Trees, load, soft_labels
from cachefs.policy.evict.ml.past import Past
from cachefs.policy.evict.ml.places import Places
from cachefs.policy.evict.ml.rows import NO_GAP, arrival_of, costs, gaps, places, rows_of
from cachefs.policy.evict.ml.samples import Samples
from cachefs.policy.evict.ml.saved import Saved, restored, saved
from cachefs.policy.evict.ml.table import Table
from cachefs.policy.evict.names import make_policy
from cachefs.policy.evict.order import Ticks
from cachefs.policy.evict.seam import Arrival
from cachefs.simulate.accesses import SPAN, Accesses, numbered
from cachefs.simulate.replay import belady, gap_closed, replay


def new_memory(slots: int) -> Memory:
    memory = Memory(Past(), Places())
    memory.grow(slots, slots)
    return memory


def digest(memory: Memory, used: list[int]) -> None:
    memory.digest(np.array(used), np.arange(memory.now, memory.now + len(used)))


KINDS = pytest.mark.parametrize("kind", [Trees, Logistic])


def hot_and_cold(seed: int = 0, accesses: int = 40_000) -> Accesses:
    """A hot region, a cold one with loops longer than the cache, and one-off scans."""
    rng = np.random.default_rng(seed)
    parts, fresh, length = [], 50_000, 0
    while length < accesses:
        parts += [
            rng.integers(0, 150, 120),
            10_000 + (np.arange(60) + length // 3) % 1_500,
            np.arange(fresh, fresh + 60),
        ]
        fresh += 60
        length += 240
    return numbered("hot and cold", np.concatenate(parts), 65_536)


def trained_set(rows: int = 3_000) -> tuple[Features, Features]:
    """What is wanted soon has a high short frequency; the rest is noise."""
    rng = np.random.default_rng(1)
    features = rng.normal(size=(rows, len(FEATURES))).astype(np.float32)
    labels = (features[:, 4] < 0).astype(np.float32) * 0.8 + 0.1
    return features, labels.astype(np.float32)


@KINDS
def test_a_model_learns_comes_back_from_its_state_and_is_small(kind: type[Model]) -> None:
    features, labels = trained_set()
    model = kind.train(features, labels, None, 0)  # type: ignore[attr-defined]
    scores = model.score(features)
    assert scores.shape == (len(features),)
    assert ((scores > 0.5) == (labels > 0.5)).mean() > 0.9
    again = load(model.name, model.state())
    np.testing.assert_allclose(again.score(features), scores, rtol=1e-4)
    assert len(model.state()) < 500_000


def test_scores_by_the_c_interface_are_those_of_lightgbm() -> None:
    features, labels = trained_set(500)
    model = Trees.train(features, labels, None, 0)
    np.testing.assert_allclose(
        model.score(features), np.asarray(model._booster.predict(features)), rtol=1e-5
    )


def test_labels_are_soft_around_the_boundary() -> None:
    after = np.array([1, 100, 10_000], np.float32)
    low, middle, high = soft_labels(after, 100.0).tolist()
    assert low < 0.05
    assert middle == pytest.approx(0.5)
    assert high > 0.95


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_learns_to_keep_what_is_hot(seed: int) -> None:
    accesses = hot_and_cold(seed)
    lru = replay(accesses, 300, make_policy("lru", Ticks()))
    ml = replay(accesses, 300, make_policy("ml", Ticks(), seed))
    assert gap_closed(lru, ml, belady(accesses, 300)) > 10


def test_the_same_seed_gives_the_same() -> None:
    accesses = hot_and_cold(accesses=8_000)
    misses = {replay(accesses, 200, make_policy("ml", Ticks(), 3)).misses for _ in range(2)}
    assert len(misses) == 1


def test_a_chunk_that_came_back_is_remembered() -> None:
    memory = new_memory(8)
    memory.arrive(np.array([0, 1]), [Arrival(7, SPAN, SPAN), Arrival(8, 2 * SPAN, SPAN)])
    for slots in ([0, 0, 1], [1] * 40, [0], [1] * 40, [0]):
        digest(memory, slots)
    before = memory.slots[0].copy()
    assert before["uses"] == 4
    assert gaps(memory.slots[:1])[0, :2].tolist() == pytest.approx(np.log2([41, 42]), abs=0.07)
    memory.leave(np.array([0]))
    memory.arrive(np.array([5]), [Arrival(7, SPAN, SPAN)])
    for name in ("last", "uses", "short", "long"):
        assert memory.slots[5][name] == before[name]
    memory.arrive(np.array([6]), [Arrival(9, SPAN, SPAN)])
    assert memory.slots[6]["uses"] == 0


def test_features_are_numbers_whatever_happens() -> None:
    memory = new_memory(64)
    rng = np.random.default_rng(0)
    for _ in range(30):
        slots = np.unique(rng.integers(0, 64, 8))
        arrivals = [
            Arrival(int(k), int(k) & (2**40 - 1), 1 << 16)
            for k in rng.integers(0, 2**63, len(slots))
        ]
        memory.arrive(slots, arrivals)
        digest(memory, rng.integers(0, 64, 50).tolist())
        memory.leave(np.unique(rng.integers(0, 64, 5)))
        features = memory.features(np.arange(64))
        assert features.shape == (64, len(FEATURES))
        assert np.isfinite(features).all()


def test_the_memory_of_a_slot_is_what_is_stated() -> None:
    policy, slots = Learned(Ticks()), 0
    while slots < 200_000:  # as L1 grows, by extents
        slots += 1024
        policy.grow(slots)
    past, places = policy.memory.past, policy.memory.places
    tables = [past._table.rows, places._places.rows, places._regions.rows]
    arrays = [policy.memory.slots, policy.samples._of_slot, policy._used.view(), *tables]
    assert sum(array.nbytes for array in arrays) / slots < 64


def test_a_row_has_what_was_said_of_its_chunk() -> None:
    said = [
        Arrival(2**64 - 1, 2**40 - 1, 2**22 + 20, cost=1.0, frame_share=1.0),
        Arrival(7, 0, 1, cost=0.25, frame_share=0.5),
        Arrival(0, 1 << 26, 2**40),
    ]
    rows = rows_of(said)
    assert [arrival_of(row) for row in rows] == [*said[:2], said[2]._replace(span=2**24 - 1)]
    assert (gaps(rows) == NO_GAP).all()


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(0, 2**33))
@example(0, 2**31 - 951)
def test_a_clock_that_comes_round_changes_nothing(seed: int, later: int) -> None:
    """Times have 32 bits; the count of uses has no end."""

    def seen(start: int) -> Features:
        memory, rng = new_memory(40), np.random.default_rng(seed)
        memory.now = memory.past._sweep._due = start
        found = []
        for _ in range(30):
            slots = np.unique(rng.integers(0, 40, 6))
            memory.leave(slots)
            keys = rng.integers(1, 90, len(slots)).tolist()
            memory.arrive(slots, [Arrival(key, key * SPAN, SPAN) for key in keys])
            used = np.concatenate((slots, rng.integers(0, 40, 50)))
            times = np.arange(memory.now, memory.now + len(used))
            memory.places.used(places(memory.slots[used]), times)
            memory.digest(used, times)
            found.append(memory.features(np.arange(40)))
        return np.concatenate(found[10:])

    # One use in 2**32 is taken for the next one: its stamp would say that there was none.
    is_close = np.isclose(seen(2**31 + later), seen(2**31), atol=0.01)
    assert is_close.mean() > 0.995


def test_what_is_very_old_stays_old_however_long_the_clock_runs() -> None:
    memory = new_memory(1000)
    slots = np.arange(1000)
    memory.arrive(slots, [Arrival(int(slot) + 1, int(slot) * SPAN, SPAN) for slot in slots])
    digest(memory, slots.tolist())
    memory.places.used(places(memory.slots), slots + 1)
    memory.leave(np.array([7]))
    born, last = FEATURES.index("age"), FEATURES.index("recency")
    for _ in range(2**33 >> 20):
        memory.digest(np.array([0]), np.array([memory.now + (1 << 20)]))
    features = memory.features(slots[1:])
    for column in (born, last, FEATURES.index("recency of the chunk before")):
        assert features[1:, column].min() >= 30
    memory.arrive(np.array([7]), [Arrival(8, 7 * SPAN, SPAN)])
    assert memory.features(np.array([7]))[0, last] >= 30
    assert memory.features(np.array([0]))[0, last] == 0


@settings(max_examples=50)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=12), st.integers(0, 2**32 - 1))
def test_a_table_that_grows_knows_what_it_knew(steps: list[int], seed: int) -> None:
    rng, table = np.random.default_rng(seed), Table(8, np.dtype([("hash", np.int64)]))
    for step in steps:
        hashes = rng.integers(1, 2**44, 20)
        table.rows["hash"][table.at(hashes)] = hashes
        known = table.rows["hash"][table.at(hashes)]
        table.grow(len(table.rows) + step)
        assert (table.rows["hash"][table.at(hashes)] == known).all()
    counts = np.bincount(table.at(np.arange(4 * len(table.rows))), minlength=len(table.rows))
    assert counts.min() >= 1
    assert counts.max() <= 8


def test_samples_are_labelled_by_use_by_return_and_by_time() -> None:
    samples = Samples()
    samples.grow(4)
    nan = np.full(3, np.nan, np.float32)
    features = np.arange(3 * len(FEATURES), dtype=np.float32).reshape(3, -1)
    samples.add(np.array([0, 1, 2]), features, nan, now=10)
    assert samples.is_free(np.arange(4)).tolist() == [False, False, False, True]
    samples.used(np.array([0]), np.array([15]), 50)
    samples.left(np.array([1, 2]), np.array([101, 102], np.uint64))
    samples.arrived([3], [101])
    samples.used(np.array([3]), np.array([40]), 50)
    samples.expire(now=500, longest=100, boundary=50)
    found, after = samples.training_set()
    assert after.tolist() == [5, 30, 200]
    np.testing.assert_array_equal(found, features)
    assert samples.is_free(np.arange(4)).all()


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from("aulre"), st.integers(0, 7)), max_size=80))
def test_no_sample_is_labelled_twice_or_for_another(steps: list[tuple[str, int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples_module, "_MOST_WAITING", 8)
        samples, key_in, taken, now = Samples(), list(range(1, 9)), 0, 0
        samples.grow(8)
        for verb, slot in steps:
            now += 1
            if verb == "a" and key_in[slot] and samples.is_free(np.array([slot])).all():
                row = np.full((1, len(FEATURES)), key_in[slot], np.float32)
                before = samples._next
                samples.add(np.array([slot]), row, np.full(1, np.nan, np.float32), now)
                taken += samples._next - before
            elif verb == "u":
                samples.used(np.array([slot]), np.array([now]), 4)
            elif verb == "l":
                samples.left(np.array([slot]), np.array([key_in[slot]], np.uint64))
                key_in[slot] = 0
            elif verb == "r" and not key_in[slot]:
                key_in[slot] = slot + 1
                samples.arrived([slot], [slot + 1])
            else:
                samples.expire(now, 10, 4)
        for slot in range(8):  # whose sample a slot has is that of the chunk in it
            at = samples._of_slot[slot]
            if at >= 0 and samples._is_waiting[at] and key_in[slot]:
                assert samples._waiting[at, 0] == key_in[slot]
        samples.expire(now + 100, 10, 4)
        assert samples.labelled == taken


class Contrary:
    """A model that is always wrong: what was just used goes first."""

    name = "contrary"

    def score(self, features: Features) -> Features:
        return np.asarray(-features[:, 0])

    def state(self) -> bytes:
        return b""


@settings(max_examples=80)
@example(
    [
        ("evict", 12),
        ("evict", 1),
        ("evict", 36),
        ("use", 1),
        ("rule", "s3fifo"),
        ("evict", 38),
        ("use", 1),
    ]
)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("use"), st.integers(0, 2**30)),
            st.tuples(st.just("evict"), st.integers(1, 60)),
            st.tuples(st.just("remove"), st.integers(0, 99)),
            st.tuples(st.just("fill"), st.integers(1, 30)),
            st.tuples(st.just("rule"), st.sampled_from([MODEL, *EXPERTS])),
        ),
        max_size=60,
    )
)
def test_whoever_rules_a_slot_is_chosen_once_and_only_if_it_is_occupied(
    steps: list[tuple[str, int | str]],
) -> None:
    """A slot that is named twice, or when it is empty, would be given to two chunks."""
    with pytest.MonkeyPatch.context() as patch:
        ruler = [MODEL]

        def decide(guard: Guard, held: object) -> str:
            guard.ruler = ruler[0]
            return ruler[0]

        patch.setattr(Guard, "decide", decide)
        policy, occupied, key = Learned(Ticks()), set[int](), 0
        policy.grow(100)
        policy.adopt(Contrary())
        for verb, value in [("fill", 100), *steps, ("evict", 100)]:
            if verb == "use":
                policy.touch_many(np.random.default_rng(int(value)).integers(0, 100, 150))
            elif verb == "rule":
                ruler[0] = str(value)
            elif verb == "remove":
                policy.remove(int(value))
                occupied.discard(int(value))
            elif verb == "fill":
                for slot in sorted(set(range(100)) - occupied)[: int(value)]:
                    key += 1
                    policy.insert(slot, Arrival(key % 150 + 1, key % 150 * SPAN, SPAN))
                    occupied.add(slot)
            else:
                chosen = policy.evict(int(value), lambda slot: slot % 10 == 0)
                assert len(chosen) == len(set(chosen))
                assert set(chosen) <= {slot for slot in occupied if slot % 10}
                assert len(chosen) == min(int(value), len([s for s in occupied if s % 10]))
                occupied.difference_update(chosen)
            assert {slot for slot in range(100) if policy.holds(slot)} == occupied


def model_bytes() -> bytes:
    features, labels = trained_set(300)
    return saved(Saved(Logistic.train(features, labels, None, 0), 123.5, MODEL, 4))


def test_what_is_saved_is_restored() -> None:
    what = restored(model_bytes())
    assert (what.boundary, what.ruler, what.trainings) == (123.5, MODEL, 4)
    assert what.model.name == "logistic"


@settings(max_examples=200)
@given(st.data())
def test_damaged_bytes_are_refused(data: st.DataObject) -> None:
    good = bytearray(model_bytes())
    kind = data.draw(st.sampled_from(["flip", "cut", "other"]))
    if kind == "flip":
        good[data.draw(st.integers(0, len(good) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "cut":
        del good[data.draw(st.integers(0, len(good) - 1)) :]
    else:
        good = bytearray(data.draw(st.binary(max_size=200)))
    with pytest.raises(ValueError, match=r"\w"):
        restored(bytes(good))


@pytest.mark.parametrize("state", [b"", b"tree\n", b"\xff", b"[1]", b"[[1],[2],[3]]"])
@pytest.mark.parametrize("name", ["trees", "logistic", "oracle"])
def test_a_state_with_a_right_checksum_that_is_no_model(name: str, state: bytes) -> None:
    good = model_bytes()
    length = struct.unpack_from("<8sIII", good)[2]
    text = good[20 : 20 + length].replace(b'"logistic"', f'"{name}"'.encode())
    rest = text + state
    head = struct.pack("<8sIII", b"cachefsM", 1, len(text), zlib.crc32(rest))
    with pytest.raises((ValueError, TypeError, LookupError)):
        restored(head + rest)


def test_a_policy_goes_on_from_what_was_saved_and_can_forget() -> None:
    accesses = hot_and_cold(accesses=12_000)
    old = Learned(Ticks())
    replay(accesses, 200, old)
    what = old.saved()
    assert what is not None
    new = Learned(Ticks())
    new.grow(200)
    new.take_over(restored(saved(what)))
    assert new.trainings == old.trainings
    assert new.model is not None
    figures = new.what_it_does()
    assert figures["model"] == "trees"
    new.reset()
    assert new.saved() is None
    assert new.what_it_does()["ruler"] == FIRST


def test_training_is_work_that_others_do() -> None:
    """While it lasts nothing else waits: the policy goes on with the old model."""
    policy = Learned(Ticks())
    policy.grow(100)
    rng = np.random.default_rng(0)
    for slot in range(100):
        policy.insert(slot, Arrival(slot + 1, slot * SPAN, SPAN))
    while (work := policy.training()) is None:
        policy.touch_many(rng.integers(0, 100, 500))
    assert policy.training() is None  # one at a time
    assert policy.what_it_does()["model"] is None
    assert len(policy.evict(3, lambda slot: False)) == 3
    policy.adopt(None)  # it failed
    assert policy.what_it_does()["model"] is None
    policy.adopt(work())
    assert policy.what_it_does()["model"] == "trees"
    assert len(policy.evict(50, lambda slot: slot < 10)) == 50


def test_its_cpu() -> None:
    """Loose, because machines differ; `make bench-eviction` says how much it is."""
    accesses = hot_and_cold()
    started_s = time.process_time()
    replay(accesses, 300, make_policy("ml", Ticks()))
    assert (time.process_time() - started_s) / len(accesses) < 200e-6


class Blind:
    """A model that knows nothing."""

    name = "blind"

    def score(self, features: Features) -> Features:
        return np.full(len(features), 0.5, np.float32)

    def state(self) -> bytes:
        return b""


def ruled_by_the_blind(arrivals: list[Arrival]) -> Learned:
    policy = Learned(Ticks())
    policy.grow(len(arrivals))
    policy.adopt(Blind())
    policy.guard.begin(MODEL, policy._held_rows)
    for slot, arrival in enumerate(arrivals):
        policy.insert(slot, arrival)
    return policy


def test_what_is_cheap_to_fetch_again_goes_first() -> None:
    cheap = set(range(3, 64, 5))
    arrivals = [
        Arrival(slot + 1, slot * SPAN, SPAN, cost=0.25 if slot in cheap else 1.0)
        for slot in range(64)
    ]
    policy = ruled_by_the_blind(arrivals)
    assert set(policy.evict(len(cheap) // 2, lambda _: False)) <= cheap


def test_chunks_of_an_earlier_run_are_as_dear_as_others() -> None:
    policy = ruled_by_the_blind([Arrival(slot + 1) for slot in range(32)])
    policy.grow(64)
    policy.insert_many(np.arange(32, 64))
    assert (costs(policy.memory.slots) == 1).all()


def test_what_was_prefetched_is_as_old_as_its_arrival() -> None:
    memory = new_memory(4)
    memory.now = 10_000
    memory.arrive(np.array([0, 1]), [Arrival(1, is_prefetched=True), Arrival(2)])
    features = memory.features(np.array([0, 1]))
    assert features[0, FEATURES.index("recency")] == 0
    assert features[0, FEATURES.index("prefetched, unused")] == 1
    digest(memory, [0])
    assert memory.features(np.array([0]))[0, FEATURES.index("prefetched, unused")] == 0


def test_lru_by_candidates_gives_up_what_is_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """So it is over a million slots, where an exact LRU would hold up the loop."""
    monkeypatch.setattr("cachefs.policy.evict.ml.ranker._MOST_EXACT", 100)
    accesses = hot_and_cold(accesses=20_000)
    lru = replay(accesses, 400, make_policy("lru", Ticks())).misses
    policy = Learned(Ticks())
    policy._next_training = 1 << 60
    monkeypatch.setattr("cachefs.policy.evict.ml.guard.Guard.decide", lambda *_: FIRST)
    assert replay(accesses, 400, policy).misses == pytest.approx(lru, rel=0.02)


def test_what_is_known_stays_when_slots_come() -> None:
    memory = new_memory(2)
    memory.arrive(np.array([0, 1]), [Arrival(5), Arrival(6)])
    for slots in (3, 4, 5, 64, 20):
        memory.grow(slots, slots)
    assert len(memory.slots) == 64
    assert memory.slots["key"][:3].tolist() == [5, 6, 0]
