"""Streams: which read continues which."""

from random import Random

from cachefs.policy.prefetch.runs import RunLengths
from cachefs.policy.prefetch.streams import MOST_STREAMS, Kind, Streams
from cachefs.units import GIB, KIB, MIB
from tests.unit.policy.prefetch.images import CHUNK, read


def kinds(streams: Streams, offsets: list[int], size_bytes: int = 4 * KIB) -> list[Kind]:
    return [streams.observe(read(at, size_bytes), CHUNK).kind for at in offsets]


def test_reads_that_follow_each_other_are_one_stream() -> None:
    streams = Streams()
    found = [streams.observe(read(n * 4 * KIB, 4 * KIB), CHUNK) for n in range(100)]
    assert len({stream.number for stream in found}) == 1
    assert found[0].kind is Kind.FORWARD
    assert found[0].run_bytes == 400 * KIB
    assert not Streams().observe(read(0, 4 * KIB), CHUNK).is_established


def test_a_run_that_goes_backwards_is_told() -> None:
    streams = Streams()
    assert kinds(streams, [MIB - n * 4 * KIB for n in range(5)])[1:] == [Kind.BACKWARD] * 4


def test_requests_that_overtake_each_other_are_still_one_run() -> None:
    streams = Streams()
    order = [0, 1, 3, 2, 4, 6, 5, 7, 8]
    found = [streams.observe(read(n * MIB, MIB), CHUNK) for n in order]
    assert len({stream.number for stream in found}) == 1
    assert found[-1].end == 9 * MIB


def test_readers_who_interleave_are_told_apart() -> None:
    streams = Streams()
    places = {1: 0, 2: 100 * MIB, 3: 300 * MIB}
    numbers: dict[int, set[int]] = {reader: set() for reader in places}
    for n in range(50):
        for reader, begin in places.items():
            at = begin + n * 16 * KIB
            stream = streams.observe(read(at, 16 * KIB, reader=reader), CHUNK)
            numbers[reader].add(stream.number)
    assert [len(found) for found in numbers.values()] == [1, 1, 1]
    assert len(set.union(*numbers.values())) == 3


def test_one_reader_with_two_runs_has_two_streams() -> None:
    streams = Streams()
    found = [
        streams.observe(read(begin + n * 4 * KIB, 4 * KIB), CHUNK)
        for n in range(20)
        for begin in (0, GIB)
    ]
    assert {stream.number for stream in found} == {found[0].number, found[1].number}
    assert [stream.run_bytes for stream in found[:2]] == [80 * KIB, 80 * KIB]


def test_threads_of_one_guest_share_a_run() -> None:
    streams = Streams()
    found = {
        streams.observe(read(n * 64 * KIB, 64 * KIB, reader=n % 4), CHUNK).number for n in range(32)
    }
    assert len(found) == 1


def test_equal_jumps_are_a_stride_and_others_are_not() -> None:
    streams = Streams()
    assert kinds(streams, [n * 10 * MIB for n in range(8)])[4:] == [Kind.STRIDED] * 4
    assert kinds(streams, [900 * MIB - n * 7 * MIB for n in range(8)])[-3:] == [Kind.STRIDED] * 3
    assert Kind.STRIDED not in kinds(Streams(), [n * n * 10 * MIB for n in range(1, 20)])


def test_random_reads_establish_nothing_and_push_no_run_out() -> None:
    chance = Random(1)
    streams = Streams()
    run = streams.observe(read(2 * GIB, 4 * KIB, reader=2), CHUNK)
    for n in range(1, 2000):
        run = streams.observe(read(2 * GIB + n * 4 * KIB, 4 * KIB, reader=2), CHUNK)
        for _ in range(5):
            at = chance.randrange(GIB // 4096) * 4096
            assert not streams.observe(read(at, 4 * KIB), CHUNK).is_established
    assert run.run_bytes == 2000 * 4 * KIB
    assert len(streams) < 2 * MOST_STREAMS


def test_streams_are_bounded_and_what_is_quiet_goes() -> None:
    streams = Streams()
    for n in range(1000):
        for k in range(4):
            streams.observe(read(n * 100 * MIB + k * 4 * KIB, 4 * KIB, time_s=n), CHUNK)
    assert len(streams) <= MOST_STREAMS
    assert not streams.quiet(10_000, 2000.0)
    gone = streams.quiet(20, 998.0)
    assert gone
    assert all(stream.last_s < 998 for stream in gone)
    assert len(streams) <= MOST_STREAMS - len(gone) + 1


def test_what_runs_promise_is_learned_from_how_they_ended() -> None:
    lengths = RunLengths()
    assert 128 * KIB < lengths.reach(64 * KIB)[0] < 256 * KIB
    for _ in range(20):
        lengths.add(MIB)
    assert lengths.reach(512 * KIB)[0] == lengths.reach(1000 * KIB)[0] == MIB
    assert lengths.reach(512 * KIB)[1] > 0.9
    assert lengths.reach(256 * KIB)[0] == MIB
    assert lengths.reach(MIB) == (MIB, 0.0)  # no longer
    for _ in range(200):
        lengths.add(GIB)
    assert lengths.reach(MIB)[0] == 4 * MIB
    assert lengths.reach(0)[0] == 16 * KIB


def test_among_runs_of_about_one_length_only_what_nearly_all_reach_is_promised() -> None:
    alike, unlike = RunLengths(), RunLengths()
    for number in range(30):
        is_short = number % 10 < 3
        alike.add(3 * MIB if is_short else 5 * MIB)
        unlike.add(3 * MIB if is_short else MIB << number % 7 + 2)
    assert alike.reach(3 * MIB) == (3 * MIB, 0.0)  # three of ten have ended there
    assert alike.reach(2 * MIB)[1] > 0.9
    assert unlike.reach(3 * MIB)[0] >= 4 * MIB
    assert alike.reach(8 * MIB)[0] > 16 * MIB  # it has outgrown them


def test_of_a_long_run_that_will_end_in_this_step_a_part_is_promised() -> None:
    lengths = RunLengths()
    for number in range(60):  # two of three end between 8 and 11 MiB, anywhere
        lengths.add(9 * MIB if number % 3 else 64 * MIB)
    begin, later = lengths.reach(8 * MIB)[0], lengths.reach(10 * MIB)[0]
    assert 8 * MIB + 256 * KIB < begin < 9 * MIB
    assert later - 10 * MIB == begin - 8 * MIB  # as long as it lasts
    assert lengths.reach(4 * MIB)[0] == 8 * MIB


def test_a_run_that_goes_on_after_another_was_begun_has_not_ended() -> None:
    streams = Streams()
    for turn in range(50):
        for n in range(4):
            streams.observe(read((4 * turn + n) * MIB, MIB), CHUNK)
        for n in range(4):
            streams.observe(read(GIB * (turn + 1) + n * MIB, MIB), CHUNK)
    assert streams.lengths.reach(8 * MIB)[0] > 16 * MIB  # as nothing was seen to end there
    assert streams.lengths.reach(4 * MIB)[0] == 4 * MIB
