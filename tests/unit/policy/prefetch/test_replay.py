from __future__ import annotations

import numpy as np
import pytest

from cachefs.policy.prefetch.learner import Rows
from cachefs.policy.prefetch.profile import Profile, merge
from cachefs.policy.prefetch.replay import Replay
from cachefs.policy.prefetch.seam import Access, Wish
from cachefs.policy.prefetch.starts import confidence_of, folded, kinds
from cachefs.simulate.ahead import Recorded, unlike_keys

CHUNK = 65536
KEYS = unlike_keys(1_000)


def boot(
    chunks: list[int],
    known: Rows | None = None,
    image: Recorded | None = None,
    seconds: float = 40.0,
) -> tuple[list[Wish], Rows]:
    """Touch chunks, then be quiet; returns what was wished for and what is known then."""
    image = image or Recorded(CHUNK, KEYS)
    arm = Replay()
    if known is not None:
        arm.taught(image, known)
    wishes = list(arm.opened(image, 100.0))
    for at, chunk in enumerate(chunks):
        wishes += arm.observe(image, Access(100.0 + at / 100, 1, chunk, 1))
    wishes += arm.observe(image, Access(100.0 + seconds, 1, chunks[0], 1))
    rows = arm.learned(image)
    assert rows is not None
    return wishes, rows


def wished(wishes: list[Wish]) -> set[int]:
    return {chunk for wish in wishes for chunk in range(wish.first, wish.first + wish.count)}


def test_what_was_touched_is_wished_for_at_the_next_open() -> None:
    chunks = [5, 6, 7, 900, 3, 44, 45, 300]
    nothing, rows = boot(chunks)
    assert not nothing
    wishes, _ = boot([999], rows)
    assert wished(wishes) == set(chunks)
    assert Wish(5, 3, wishes[0].confidence, wishes[0].due_s) in wishes
    assert all(wish.confidence > 0.9 for wish in wishes)


def test_wishes_are_due_when_they_were_touched() -> None:
    _, rows = boot(list(range(0, 900, 3)))
    image = Recorded(CHUNK, KEYS)
    arm = Replay()
    arm.taught(image, rows)
    due = {wish.first: wish.due_s for wish in arm.opened(image, 0.0)}
    assert due[0] == 0.0
    assert due[36] == pytest.approx(0.12, abs=0.02)


def test_only_consensus_is_wished_for() -> None:
    rows = None
    for run in range(6):
        _, rows = boot([1, 2, 3, 100 + run], rows)
    wishes, _ = boot([999], rows)
    assert wished(wishes) >= {1, 2, 3}
    assert not wished(wishes) & {100, 101, 102, 103, 104}


def test_what_is_no_longer_right_is_forgotten() -> None:
    _, rows = boot([1, 2, 3, 4])
    for _ in range(16):
        _, rows = boot([1, 2, 30, 40], rows)
    assert set(rows["place"].tolist()) == {1, 2, 30, 40}


def test_a_look_at_the_file_is_no_run() -> None:
    _, rows = boot(list(range(100)))
    _, after = boot([0, 1], rows, seconds=0.5)
    assert np.array_equal(after, rows)


def test_content_that_moved_is_found_and_content_that_was_replaced_is_guessed() -> None:
    _, rows = boot(list(range(100, 140)))
    keys = KEYS.copy()
    keys[100:104] = unlike_keys(4, seed=9)  # replaced where it lay
    keys[130:135], keys[500:505] = KEYS[500:505], KEYS[130:135]  # moved
    wishes, _ = boot(list(range(104, 112)), rows, Recorded(CHUNK, keys))
    assert wished(wishes) == (set(range(100, 140)) - set(range(130, 135))) | set(range(500, 505))
    replaced = next(wish for wish in wishes if wish.first <= 100 < wish.first + wish.count)
    moved = next(wish for wish in wishes if wish.first <= 502 < wish.first + wish.count)
    assert replaced.confidence < moved.confidence


def test_of_a_long_run_of_replaced_content_the_beginning_is_expected_until_it_is_read() -> None:
    """As of a file that an upgrade wrote elsewhere, or wrote anew where it was."""
    _, rows = boot([*range(100, 130), *range(300, 340)])
    keys = KEYS.copy()
    keys[100:130] = unlike_keys(30, seed=9)
    image = Recorded(CHUNK, keys)
    arm = Replay()
    arm.taught(image, rows)
    wishes = list(arm.opened(image, 0.0))
    for at, chunk in enumerate(range(300, 340)):
        wishes += arm.observe(image, Access(at / 100, 1, chunk, 1))
    assert wished(wishes) == set(range(100, 108)) | set(range(300, 340))
    for at in range(3):
        wishes += arm.observe(image, Access(1.0 + at, 1, 100 + at, 1))
        assert wished(wishes) & set(range(200)) == set(range(100, min(116 + 8 * at, 130)))


def test_a_foreign_profile_finds_nothing() -> None:
    _, rows = boot(list(range(100)))
    wishes, _ = boot([1], rows, Recorded(CHUNK, unlike_keys(1_000, seed=3)))
    assert not wishes


def test_a_replay_that_nobody_follows_stops() -> None:
    """1,000 chunks are known; some are wished for without evidence, and a stage more."""
    _, rows = boot(list(range(1_000)))
    image = Recorded(CHUNK, KEYS)
    arm = Replay()
    arm.taught(image, rows)
    wishes = list(arm.opened(image, 0.0))
    assert 2**20 <= len(wished(wishes)) * CHUNK < 2 * 2**20
    wishes += arm.observe(image, Access(0.1, 1, 0, 2))  # as somebody does who looks at a file
    assert len(wished(wishes)) * CHUNK < 8 * 2**20
    for chunk in range(2, 200):
        wishes += arm.observe(image, Access(chunk / 100, 1, chunk, 1))
    assert len(wished(wishes)) == 1_000


def test_what_was_read_before_the_profile_came_is_evidence() -> None:
    _, rows = boot(list(range(1_000)))
    image = Recorded(CHUNK, KEYS)
    arm = Replay()
    arm.opened(image, 0.0)
    arm.observe(image, Access(0.1, 1, 0, 64))
    arm.taught(image, rows)
    found = wished(list(arm.opened(image, 0.2)))
    assert min(found) == 64
    assert len(found) > 500


def test_a_start_leads_while_nearly_all_of_it_is_known() -> None:
    _, rows = boot(list(range(300)))
    keys = KEYS.copy()
    keys[900:] = 0
    image = Recorded(CHUNK, keys)
    arm = Replay()
    assert not arm.leads(image)
    arm.opened(image, 0.0)
    assert not arm.leads(image)  # nothing is known
    arm.taught(image, rows)
    arm.opened(image, 0.0)
    assert arm.leads(image)
    for chunk in [*range(200), *range(900, 1_000)]:  # chunks of zeros are no surprise
        arm.observe(image, Access(chunk / 100, 1, chunk, 1))
    assert arm.leads(image)
    for chunk in range(500, 580):  # another workload
        arm.observe(image, Access(15.0, 1, chunk, 1))
    assert not arm.leads(image)


def test_the_profile_of_another_version_never_leads() -> None:
    _, rows = boot(list(range(300)))
    keys = KEYS.copy()
    keys[280:300] = unlike_keys(20, seed=9)
    image = Recorded(CHUNK, keys)
    arm = Replay()
    arm.taught(image, rows)
    arm.opened(image, 0.0)
    for chunk in range(280):
        arm.observe(image, Access(chunk / 100, 1, chunk, 1))
    assert not arm.leads(image)


def test_hosts_share_a_consensus() -> None:
    _, mine = boot([1, 2, 3])
    _, theirs = boot([2, 3, 4])
    both = merge(
        Profile("a", CHUNK, {"replay": mine}), Profile("a", CHUNK, {"replay": theirs})
    ).sections["replay"]
    certain = dict(zip(both["place"].tolist(), confidence_of(both).tolist(), strict=True))
    assert certain[2] == certain[3] > 0.9
    assert certain[4] < certain[1] < 0.7
    assert not len(folded(both[:0], both[:0]))


BOOT, RESUME = list(range(300)), [0, *range(400, 440)]


def of_two_kinds() -> Rows:
    """Return what is known after boots, a resume and boots."""
    rows = None
    for start in (BOOT, BOOT, RESUME, BOOT):
        _, rows = boot(start, rows)
    assert rows is not None
    return rows


@pytest.mark.parametrize(("touched", "kind"), [(RESUME[:4], RESUME), (BOOT[:4], BOOT)])
def test_of_several_kinds_of_starts_the_one_that_it_is_like_is_replayed(
    touched: list[int], kind: list[int]
) -> None:
    image = Recorded(CHUNK, KEYS)
    arm = Replay()
    arm.taught(image, of_two_kinds())
    arm.opened(image, 0.0)
    wishes: list[Wish] = []
    for at, chunk in enumerate(touched):
        wishes += arm.observe(image, Access(at / 100, 1, chunk, 1))
    late = [*kind[40:], *kind[5:40]]
    for at, chunk in enumerate(late):
        wishes += arm.observe(image, Access(1 + at / 100, 1, chunk, 1))
    assert wished(wishes) <= set(kind)
    if kind == RESUME:
        assert wished(wishes) >= set(RESUME[4:])


def test_a_start_may_turn_out_to_be_another() -> None:
    """It begins as a resume does, and then it is a boot after all."""
    image = Recorded(CHUNK, KEYS)
    arm = Replay()
    arm.taught(image, of_two_kinds())
    wishes = list(arm.opened(image, 0.0))
    for at, chunk in enumerate([400, 401, 402, *range(0, 200, 10)]):
        wishes += arm.observe(image, Access(at / 100, 1, chunk, 1))
    assert wished(wishes) >= set(range(200, 250))


def test_starts_that_share_little_are_of_different_kinds() -> None:
    assert kinds(of_two_kinds()).sum(axis=1).tolist() == [3, 1]
    assert kinds(of_two_kinds())[0, :4].tolist() == [True, False, True, True]
    assert not len(kinds(of_two_kinds()[:0]))


def test_of_a_kind_what_few_starts_did_is_not_expected_of_a_new_one() -> None:
    """Each boot of another workload reads what all read, and something of its own."""
    rows = None
    for workload in range(5):
        _, rows = boot([*range(200), *range(300 + 100 * workload, 400 + 100 * workload)], rows)
    assert rows is not None
    assert len(kinds(rows)) == 1
    wishes, _ = boot([*range(100), *range(300, 320), *range(900, 950)], rows)
    assert wished(wishes) == set(range(200))


def test_a_start_that_ended_early_is_remembered_if_it_was_of_another_kind() -> None:
    _, rows = boot(BOOT)
    _, same = boot(BOOT[:100], rows, seconds=2.0)
    assert np.array_equal(same, rows)
    _, other = boot(RESUME, rows, seconds=2.0)
    assert set(other["place"].tolist()) == {*BOOT, *RESUME}
    certain = dict(zip(other["place"].tolist(), confidence_of(other).tolist(), strict=True))
    assert certain[200] > 0.5 > certain[420]  # a small one says less of the next one


def test_a_profile_without_sense_is_not_planned_anew_at_each_touch() -> None:
    """Every chunk says that the start is like others than the one before it said."""
    _, rows = boot(list(range(1_000)))
    rows["which"] = np.where(np.arange(1_000) // 4 % 2, 0xFF00, 0x00FF)
    image = Recorded(CHUNK, KEYS)
    arm = Replay()
    arm.taught(image, rows)
    arm.opened(image, 0.0)
    for chunk in range(1_000):
        arm.observe(image, Access(chunk / 100, 1, chunk, 1))
    assert 1 < arm._runs[image].turns <= 16
