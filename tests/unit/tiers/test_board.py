import itertools
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from cachefs.tiers import board as board_module
from cachefs.tiers.board import ACCESS_DTYPE, Board, NoBoard
from cachefs.units import GIB, KIB, TIB
from mount_helper import _lane
from mount_helper.board import create

CHUNK = 64 * KIB


@pytest.fixture
def fd() -> Iterator[int]:
    fd = create()
    yield fd
    os.close(fd)


def no_offer(number: int, fd: int) -> None:
    raise AssertionError(f"nothing to offer: {number}, {fd}")


def new_board(fd: int) -> Board:
    return Board(fd, no_offer, serves_hits=True)


def windows(fd: int) -> list[tuple[int, int]]:
    return sorted((at, size) for _, _, _, _, at, size in _lane.Board(fd).images())


def test_the_dtype_of_accesses_has_the_fields_that_a_policy_wants() -> None:
    assert {"at_ns", "inode", "offset", "length", "pid", "by_lane"} <= set(ACCESS_DTYPE.names or ())
    assert ACCESS_DTYPE["offset"] == np.uint64


def test_an_image_is_placed_once(fd: int) -> None:
    board = new_board(fd)
    board.place(7, GIB, CHUNK)
    board.place(7, GIB, CHUNK)
    [(_, inode, size_bytes, shift, _, table_bytes)] = _lane.Board(fd).images()
    assert (inode, size_bytes, 1 << shift) == (7, GIB, CHUNK)
    assert table_bytes >= GIB // CHUNK * _lane.BOARD_LAYOUT["chunk_entry_bytes"]


def test_tables_do_not_overlap_and_gaps_are_used_again(fd: int) -> None:
    board = new_board(fd)
    for inode in range(1, 40):
        board.place(inode, inode * GIB, CHUNK)
    for inode in (3, 9, 20):
        board.forget(inode)
        board.forget(inode)
    for inode in range(100, 110):
        board.place(inode, GIB, CHUNK)
    found = windows(fd)
    assert len(found) == 46
    for (at, size), (next_at, _) in itertools.pairwise(found):
        assert at + size <= next_at
    assert found[-1][0] + found[-1][1] < 40 * 20 * GIB // CHUNK * 24  # the gaps were filled


def test_images_beyond_all_bounds_have_no_place(fd: int) -> None:
    board = new_board(fd)
    board.place(7, 1024 * TIB, 4 * KIB)
    assert windows(fd) == []


def test_when_a_bucket_is_full_the_oldest_of_it_goes(fd: int) -> None:
    board = new_board(fd)
    lane = _lane.Board(fd)
    first = lane.bucket(1)
    same = [inode for inode in range(1, 100_000) if lane.bucket(inode) == first][:20]
    for inode in same:
        board.place(inode, GIB, CHUNK)
    assert {row[1] for row in lane.images()} == set(same[-16:])


def test_when_the_tables_have_no_room_the_oldest_go(fd: int) -> None:
    board = new_board(fd)
    half = _lane.BOARD_LAYOUT["tables_bytes"] // 24 * 4 * KIB // 2
    for inode in range(1, 6):
        board.place(inode, half, 4 * KIB)
    assert {row[1] for row in _lane.Board(fd).images()} == {4, 5}


def test_the_next_daemon_takes_over(fd: int) -> None:
    first = new_board(fd)
    for inode in range(1, 50):
        first.place(inode, inode * GIB, CHUNK)
    before = windows(fd)
    second = new_board(fd)
    for inode in range(1, 50):
        second.place(inode, inode * GIB, CHUNK)
    assert windows(fd) == before
    second.place(1000, GIB, CHUNK)
    assert len(windows(fd)) == 50


def test_segments_are_offered_and_a_file_that_the_lane_does_not_know_makes_its_class_empty(
    fd: int,
) -> None:
    offered: list[int] = []
    board = Board(fd, lambda number, _: offered.append(number), serves_hits=True)
    file = os.memfd_create("segment")
    board.own_segment(4, file)
    assert offered == [4]
    os.close(file)


def test_without_hits_nothing_is_offered_nor_published(fd: int) -> None:
    board = Board(fd, no_offer, serves_hits=False)
    board.own_segment(4, fd)
    board.place(7, GIB, CHUNK)
    board.publish(7, 0, bytes(32), 4 << 28)
    board.publish_zero(7, 1)
    assert _lane.Board(fd).images() == []


def test_published_entries_are_counted_and_pages_given_up(
    fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board_module, "_FORGET_PAGES_AFTER", 3)
    board = new_board(fd)
    board.place(7, GIB, CHUNK)
    for index in range(10):
        board.publish_zero(7, index)
    assert board._written == 1


def test_an_empty_ring(fd: int) -> None:
    accesses, slots = new_board(fd).drain()
    assert accesses.dtype == ACCESS_DTYPE
    assert (len(accesses), len(slots)) == (0, 0)


def test_no_board_takes_everything() -> None:
    board = NoBoard()
    board.own_segment(4, 0)
    board.empty(1)
    board.empty_class(1, b"")
    board.publish(1, 1, b"", 1)
    board.publish_zero(1, 1)


def test_what_has_no_place_yet_is_not_told(fd: int) -> None:
    board = new_board(fd)
    assert not board.publish(7, 0, b"\x01" * 32, 4 << 28)
    board.place(7, GIB, CHUNK)
    assert board.publish(7, 0, b"\x01" * 32, 4 << 28) == _lane.Board(fd).holds(4 << 28)
    assert Board(fd, no_offer, serves_hits=False).publish(8, 0, b"\x01" * 32, 4 << 28)


class LateLane:
    """A board whose lane takes no segment until `is_there`."""

    def __init__(self, fd: int) -> None:
        self._board = _lane.Board(fd)
        self.is_there = False
        self.told: list[tuple[int, int, bytes, int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._board, name)

    def publish(self, inode: int, index: int, chunk_id: bytes, slot: int) -> bool:
        if self.is_there:
            self.told.append((inode, index, chunk_id, slot))
        return self.is_there


def test_what_the_lane_could_not_take_is_told_as_soon_as_it_can_unless_it_was_given_up(
    fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lane = LateLane(fd)
    monkeypatch.setattr(_lane, "Board", lambda _: lane)
    board = new_board(fd)
    board.place(7, GIB, CHUNK)
    slots = [(4 << 28) + number for number in range(4)]
    for index, slot in enumerate(slots):
        assert not board.publish(7, index, bytes([index]) * 32, slot)
    board.publish(8, 0, bytes(32), 4 << 28)  # has no place: its next read tells it
    board.empty(slots[1])
    board.beat()
    lane.is_there = True
    board.beat()
    board.beat()
    assert lane.told == [(7, n, bytes([n]) * 32, slots[n]) for n in (0, 2, 3)]
