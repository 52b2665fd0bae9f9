"""The sequential arm: how far it runs ahead, and when it doesn't."""

from random import Random

import pytest

from cachefs.policy.prefetch.seam import Access, Wish
from cachefs.policy.prefetch.sequential import Sequential
from cachefs.units import GIB, KIB, MIB
from tests.unit.policy.prefetch.images import CHUNK, Bare, read

IMAGE_CHUNKS = GIB // CHUNK


def watched(ceiling_bytes: int = 16 * MIB) -> tuple[Sequential, Bare]:
    arm, image = Sequential(ceiling_bytes), Bare(IMAGE_CHUNKS)
    assert not arm.opened(image, 0.0)
    return arm, image


def run(arm: Sequential, image: Bare, offsets: list[int], size_bytes: int) -> list[Wish]:
    return [wish for at in offsets for wish in arm.observe(image, read(at, size_bytes))]


def chunks(wishes: list[Wish]) -> list[int]:
    return [n for wish in wishes for n in range(wish.first, wish.first + wish.count)]


def test_a_run_is_run_ahead_of_in_order_and_each_chunk_is_wished_for_once() -> None:
    arm, image = watched()
    wished = chunks(run(arm, image, [n * MIB for n in range(100)], MIB))
    assert wished == list(range(wished[0], wished[-1] + 1))
    assert wished[0] == 3 * 16  # from the third read on
    assert 100 * 16 + 11 * 16 <= wished[-1] < 100 * 16 + 16 * 16  # a window, or its trigger


def test_a_window_is_never_longer_than_what_was_read() -> None:
    arm, image = watched(64 * MIB)
    for n in range(60):
        for wish in arm.observe(image, read(n * MIB, MIB)):
            assert wish.first + wish.count <= 2 * (n + 1) * 16


def test_the_image_ends_the_wishes() -> None:
    arm = Sequential()
    image = Bare(10)
    wished = chunks(run(arm, image, [n * CHUNK for n in range(10)], CHUNK))
    assert wished[-1] == 9
    assert max(wished) < 10


def test_backwards_it_runs_ahead_to_the_beginning() -> None:
    arm, image = watched()
    wished = chunks(run(arm, image, [(63 - n) * MIB for n in range(64)], MIB))
    assert sorted(wished) == list(range(61 * 16))


def test_a_stride_gets_the_chunks_that_it_will_touch_and_no_others() -> None:
    arm, image = watched()
    wished = chunks(run(arm, image, [n * MIB for n in range(40)], 4 * KIB))
    assert wished
    assert all(n % 16 == 0 for n in wished)
    assert len(set(wished)) == len(wished)
    assert max(wished) > 40 * 16


@pytest.mark.parametrize("span_bytes", [16 * MIB, 256 * MIB, GIB])
def test_a_random_reader_of_4_kib_gets_next_to_nothing(span_bytes: int) -> None:
    arm, image = watched()
    chance = Random(span_bytes)
    offsets = [chance.randrange(span_bytes // 4096) * 4096 for _ in range(20_000)]
    wished = len(chunks(run(arm, image, offsets, 4 * KIB)))
    assert wished < 0.01 * len(offsets)


def test_reads_of_a_mebibyte_at_random_cut_into_small_requests_are_learned() -> None:
    arm, image = watched()
    chance = Random(1)
    wasted = 0
    for turn in range(200):
        begin = chance.randrange(900) * MIB
        wishes = run(arm, image, [begin + n * 128 * KIB for n in range(8)], 128 * KIB)
        beyond = [n for n in chunks(wishes) if not begin <= n * CHUNK < begin + MIB]
        if turn > 100:
            wasted += len(beyond)
    assert wasted < 0.05 * 99 * 16


def test_waste_shrinks_the_window_and_use_opens_it_again() -> None:
    def furthest(arm: Sequential, image: Bare) -> int:
        return chunks(run(arm, image, [n * MIB for n in range(20)], MIB))[-1] - 20 * 16

    arm, image = watched()
    for _ in range(600):
        arm.judged(image, 0, was_used=False)
    assert furthest(arm, image) < 5 * 16
    for _ in range(1200):
        arm.judged(image, 0, was_used=True)
    run(arm, image, [20 * MIB], MIB)
    assert chunks(run(arm, image, [n * MIB for n in range(21, 40)], MIB))[-1] > (40 + 9) * 16


def test_a_run_that_was_left_takes_its_wishes_back() -> None:
    arm, image = watched()
    [number] = {wish.stream for wish in run(arm, image, [n * MIB for n in range(10)], MIB)}
    chance = Random(1)
    taken_back: list[int] = []
    for n in range(2000):
        at = chance.randrange(2**12) * 2**16
        access = read(512 * MIB + at, 4 * KIB, time_s=n / 100)
        taken_back += [wish.stream for wish in arm.observe(image, access) if not wish.count]
    assert number in taken_back


def test_accesses_in_chunks_alone_are_enough() -> None:
    arm, image = watched()
    wished = [w for n in range(50) for w in arm.observe(image, Access(0.0, 1, n, 1))]
    assert chunks(wished)[-1] > 50
    arm.closed(image, 0.0)
    arm.judged(image, 1, was_used=True)  # an image that is gone is no error
    assert str(arm.pattern(image)) == "unknown, steady"


def test_the_same_events_make_the_same_wishes() -> None:
    def once() -> list[Wish]:
        chance = Random(7)
        arm, image = watched()
        wishes: list[Wish] = []
        for n in range(3000):
            at = chance.choice([n * 4 * KIB, chance.randrange(2**12) * 2**16])
            wishes += arm.observe(image, read(at, 4 * KIB, time_s=n / 1000))
        return wishes

    assert once() == once()
