from dataclasses import dataclass
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from cachefs.tiers.ranges import plan_ranges


@dataclass(frozen=True)
class Frame:
    pack: bytes
    offset: int
    frame_bytes: int

    @property
    def end(self) -> int:
        return self.offset + self.frame_bytes


frames = st.lists(
    st.builds(Frame, st.sampled_from([b"a", b"b"]), st.integers(0, 3000), st.integers(1, 200)),
    max_size=30,
)


@given(frames, st.integers(0, 300), st.integers(1, 1000))
def test_each_frame_lies_in_exactly_one_range(
    wanted: list[Frame], max_gap: int, max_range: int
) -> None:
    ranges = plan_ranges(wanted, max_gap, max_range)
    assert sorted(member for planned in ranges for member in planned.members) == list(
        range(len(wanted))
    )
    for planned in ranges:
        members = [wanted[member] for member in planned.members]
        assert {frame.pack for frame in members} == {planned.pack}
        # A range begins with its first frame and ends with its last: nothing is read for nobody.
        assert min(frame.offset for frame in members) == planned.offset
        assert max(frame.end for frame in members) == planned.offset + planned.size_bytes
        longest = max(frame.frame_bytes for frame in members)
        assert planned.size_bytes <= max(max_range, longest)
        end = planned.offset
        for frame in sorted(members, key=lambda frame: frame.offset):
            assert frame.offset - end <= max_gap
            end = max(end, frame.end)


@given(frames, st.integers(0, 300), st.integers(1, 1000))
def test_no_two_neighbours_could_have_been_one_range(
    wanted: list[Frame], max_gap: int, max_range: int
) -> None:
    ranges = plan_ranges(wanted, max_gap, max_range)
    for first, second in pairwise(ranges):
        if first.pack != second.pack:
            continue
        frame = wanted[second.members[0]]
        gap = frame.offset - (first.offset + first.size_bytes)
        assert gap > max_gap or frame.end - first.offset > max_range


def test_nothing_wanted_is_nothing_asked() -> None:
    assert plan_ranges([], 64, 1000) == []


def test_neighbours_share_a_request_and_far_ones_do_not() -> None:
    wanted = [Frame(b"p", 5000, 100), Frame(b"p", 16, 100), Frame(b"p", 116, 50)]
    near, far = plan_ranges(wanted, 64, 1000)
    assert (near.offset, near.size_bytes, near.members) == (16, 150, [1, 2])
    assert (far.offset, far.size_bytes, far.members) == (5000, 100, [0])


def test_equal_frames_are_asked_for_once() -> None:
    [planned] = plan_ranges([Frame(b"p", 16, 100)] * 3, 64, 1000)
    assert (planned.size_bytes, planned.members) == (100, [0, 1, 2])
