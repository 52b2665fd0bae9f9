"""The plan, the budgets, the pace and the ledger, each alone."""

from random import Random

import pytest

from cachefs.policy.prefetch.budget import Budget, Venture
from cachefs.policy.prefetch.ledger import End, Entry, Ledger
from cachefs.policy.prefetch.pace import Pace
from cachefs.policy.prefetch.plan import MOST_PIECES, Plan
from cachefs.policy.prefetch.seam import Wish
from cachefs.units import KIB, MIB, TIB
from tests.unit.policy.prefetch.images import Bare

BOTH = {"a", "b"}


def test_what_is_due_first_goes_first_then_what_is_likelier() -> None:
    plan = Plan()
    plan.add("a", Wish(0, 1, 0.5), 0.0)
    plan.add("b", Wish(1, 1, 0.9), 0.0)
    plan.add("a", Wish(2, 1, 0.1, due_s=-1.0), 0.0)
    plan.add("a", Wish(3, 1, 0.99, due_s=2.0), 0.0)
    found = []
    while (piece := plan.first(0.0, BOTH)) is not None:
        found.append(piece.first)
        plan.took(piece, 1)
    assert found == [2, 1, 0, 3]
    assert not plan


def test_pieces_of_a_stream_that_follow_each_other_are_one() -> None:
    plan = Plan()
    for first in range(0, 40, 10):
        plan.add("a", Wish(first, 10, 1.0, stream=1), 0.0)
    plan.add("a", Wish(40, 10, 1.0, stream=2), 0.0)
    assert plan.chunks == 50
    piece = plan.first(0.0, BOTH)
    assert piece is not None
    assert (piece.first, piece.count) == (0, 40)
    plan.took(piece, 15)
    assert (piece.first, piece.count) == (15, 25)


def test_an_arm_takes_back_its_own_stream_and_no_other() -> None:
    plan = Plan()
    for arm, stream in (("a", 1), ("a", 2), ("b", 1), ("a", 0)):
        plan.add(arm, Wish(0, 10, 1.0, stream=stream), 0.0)
    plan.add("a", Wish(0, 0, 0.0, stream=1), 0.0)
    plan.add("a", Wish(0, 0, 0.0), 0.0)
    assert plan.chunks == 30
    piece = plan.first(0.0, {"b"})
    assert piece is not None
    assert piece.arm == "b"
    assert plan.first(0.0, set()) is None


def test_what_found_no_place_in_time_is_given_up_and_a_plan_is_bounded() -> None:
    plan = Plan()
    plan.add("a", Wish(0, 1, 1.0), 0.0)
    plan.add("a", Wish(1, 1, 1.0, due_s=60.0), 0.0)
    piece = plan.first(40.0, BOTH)
    assert piece is not None
    assert piece.first == 1
    for n in range(2 * MOST_PIECES):
        plan.add("a", Wish(n, 1, n / MOST_PIECES / 2), 40.0)
        assert plan.chunks <= MOST_PIECES
    kept = plan.first(40.0, BOTH)
    assert kept is not None
    assert kept.doubt < 0.5


def test_what_was_read_meanwhile_is_left_out_of_streams() -> None:
    plan = Plan()
    plan.add("a", Wish(10, 20, 1.0, stream=1), 0.0)
    plan.add("a", Wish(50, 20, 1.0, stream=2), 0.0)
    plan.read(5, 10)
    plan.read(60, 20)
    plan.read(100, 5)
    piece = plan.first(0.0, BOTH)
    assert piece is not None
    assert (piece.first, piece.count) == (15, 15)
    plan.read(10, 30)
    piece = plan.first(0.0, BOTH)
    assert piece is not None
    assert (piece.first, piece.count, plan.chunks) == (50, 10, 10)
    plan.clear()
    assert not plan


def test_a_budget_has_a_part_for_each_arm_and_image() -> None:
    budget = Budget(64 * MIB)
    assert budget.room_bytes("a", 1, 1.0) == 32 * MIB  # half of it for one image
    assert budget.room_bytes("a", 1, 0.25) == 16 * MIB
    assert budget.room_bytes("a", 1, 0.0) == MIB
    budget.take("a", 1, 16 * MIB)
    assert budget.room_bytes("a", 1, 0.25) == 0
    assert budget.room_bytes("b", 1, 1.0) == 16 * MIB
    budget.take("b", 2, 32 * MIB)
    assert budget.room_bytes("a", 3, 1.0) == 16 * MIB
    budget.give_back("b", 2, 32 * MIB)
    budget.give_back("a", 1, 16 * MIB)
    assert (budget.out_bytes, budget.by_arm, budget.by_image) == (0, {}, {})


def test_arms_that_guess_may_lose_a_floor_and_a_share_of_what_readers_fetch() -> None:
    venture, chance = Venture(64 * KIB), Random(1)
    lost = read = out = 0
    for _ in range(20_000):
        venture.earn(64 * KIB)
        read += 64 * KIB
        while venture.room_bytes >= 64 * KIB and chance.random() < 0.5:
            venture.take(64 * KIB)
            out += 64 * KIB
        if out and chance.random() < 0.5:
            is_lost = chance.random() < 0.3
            venture.give_back(64 * KIB, is_lost=is_lost)
            out -= 64 * KIB
            lost += 64 * KIB * is_lost
        assert lost + out <= MIB + read / 100
        assert out <= 8 * MIB
    assert lost > read / 120  # and that much it may


def test_a_venture_of_large_chunks_is_some_of_them() -> None:
    venture = Venture(4 * MIB)
    assert venture.room_bytes == 16 * MIB
    venture.earn(TIB)
    assert venture.room_bytes == 16 * MIB


def test_requests_at_once_grow_while_they_are_quick_and_shrink_when_they_take_longer() -> None:
    pace = Pace(8)
    now_s = 0.0
    for _ in range(60):
        now_s += 0.1
        pace.answered(8 * MIB, 0.1, now_s)
    assert pace.limit == 8
    assert pace.wait_s(7, now_s) == 0
    assert pace.wait_s(8, now_s) is None
    for _ in range(10):
        now_s += 1.0
        pace.answered(8 * MIB, 0.5, now_s)
    assert pace.limit <= 2
    assert pace.speed_bytes_s > 0


def test_requests_at_once_double_until_one_is_slow() -> None:
    pace = Pace(64)
    now_s = 0.0
    limits = []
    for _ in range(3):  # each time as many as may be
        now_s += 0.1
        for _ in range(pace.limit):
            pace.answered(MIB, 0.1, now_s)
        limits.append(pace.limit)
    assert limits == [24, 48, 64]
    pace.answered(MIB, 0.5, now_s + 1)
    slower = pace.limit
    assert slower < 64
    for _ in range(slower):
        pace.answered(MIB, 0.1, now_s + 2)
    assert pace.limit <= slower + 1


def test_an_outage_makes_a_pause_that_doubles_and_then_one_tries() -> None:
    pace = Pace(8)
    pauses = []
    now_s = 0.0
    for _ in range(9):
        pace.failed(now_s)
        wait_s = pace.wait_s(0, now_s)
        assert wait_s is not None
        pauses.append(wait_s)
        now_s += wait_s
        assert pace.wait_s(0, now_s) == 0
        assert pace.wait_s(1, now_s) is None
    assert pauses[:3] == [0.5, 1.0, 2.0]
    assert pauses[-1] == 30
    pace.answered(MIB, 0.1, now_s)
    assert not pace.is_interrupted


def test_a_rate_is_kept() -> None:
    pace = Pace(100, bytes_per_s=10 * MIB)
    now_s, asked = 0.0, 0
    while now_s < 10:
        wait_s = pace.wait_s(0, now_s)
        assert wait_s is not None
        if wait_s:
            now_s += wait_s
            continue
        pace.asked(MIB, now_s)
        asked += 1
    assert asked == pytest.approx(100, abs=2)


def test_every_chunk_ends_once_and_the_account_says_how() -> None:
    ledger, image = Ledger(), Bare(100)
    for slot in range(10):
        ledger.landed(slot, Entry("a", image, slot, 64, 10, time_s=slot))
    account = ledger.account("a")
    assert account.waiting == 10
    for slot in ledger.among([0, 1, 1, 2, 50]):
        ledger.ended(slot, End.USED)
    ledger.ended(3, End.EVICTED)
    for slot in ledger.older_than(6.0):
        ledger.ended(slot, End.WASTED)
    assert ledger.ended(0, End.USED) is None
    ledger.ended_at_once(Entry("a", image, 99, 64, 10), End.LATE)
    ledger.ended_at_once(Entry("a", image, 98, 64, 10), End.FAILED)
    assert (account.used, account.late, account.evicted, account.wasted) == (3, 1, 1, 2)
    assert (account.failed, account.waiting, len(ledger)) == (1, 4, 4)
    assert (account.fetched_bytes, account.wasted_bytes) == (70, 30)
    assert sorted(ledger.slots_of(image)) == [6, 7, 8, 9]
    told = account.to_dict(misses=3)
    assert (told["accuracy"], told["coverage"], told["lateness"]) == (0.5714, 0.5, 0.25)


def test_accuracy_follows_what_happened_last() -> None:
    ledger, image = Ledger(), Bare(100)
    entry = Entry("a", image, 1, 64, 10)
    account = ledger.account("a")
    assert account.accuracy == 0.8
    for _ in range(1000):
        ledger.ended_at_once(entry, End.WASTED)
    assert account.accuracy < 0.05
    for _ in range(10_000):
        ledger.ended_at_once(entry, End.LATE)
    assert account.accuracy > 0.9
