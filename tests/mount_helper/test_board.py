"""The board: what the daemon's side may do, and that the memory is what it should be."""

import os
from collections.abc import Iterator

import pytest

from mount_helper import _lane, board

LAYOUT = _lane.BOARD_LAYOUT
INODE, ID, OTHER = 77, bytes(range(32)), bytes(range(32, 64))
CLASS = 4
SLOT = CLASS << 28 | 5


@pytest.fixture
def fd() -> Iterator[int]:
    fd = board.create()
    yield fd
    os.close(fd)


@pytest.fixture
def ours(fd: int, tmp_path_factory: pytest.TempPathFactory) -> _lane.Board:
    """A board with an image, and a segment that the lane has adopted."""
    ours = _lane.Board(fd)
    place(ours)
    adopt(fd, ours)
    return ours


def place(ours: _lane.Board, inode: int = INODE, table_at: int = 0) -> int:
    number = ours.bucket(inode)
    ours.set_image(number, inode, 640_000, 16, table_at, 4096)
    return number


def adopt(fd: int, ours: _lane.Board, number: int = CLASS) -> None:
    """Give the lane a file, as the supervisor does."""
    file = os.memfd_create("segment")
    status = os.fstat(file)
    ours.own_segment(number, status.st_dev, status.st_ino)
    assert not ours.is_adopted(number)
    fuse = os.memfd_create("no kernel")
    lane = _lane.Lane(fuse, fd)
    lane.set_segment(number, file)
    lane.close()
    os.close(file)
    assert ours.is_adopted(number)


def test_a_board_cannot_be_cut(fd: int) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 4096)
    assert os.fstat(fd).st_size == LAYOUT["board_bytes"]


def test_a_new_board_takes_next_to_no_memory(fd: int) -> None:
    assert os.fstat(fd).st_blocks * 512 <= 16 * 1024


def test_other_memory_is_no_board(fd: int) -> None:
    os.pwrite(fd, b"OTHERSFB", 0)
    with pytest.raises(ValueError, match="no board"):
        _lane.Board(fd)
    other = os.memfd_create("short")
    with pytest.raises(ValueError, match="no board"):
        _lane.Board(other)
    with pytest.raises(ValueError, match="no board"):
        _lane.Lane(other, other)
    os.close(other)


def test_two_views_see_the_same(fd: int, ours: _lane.Board) -> None:
    assert ours.publish(INODE, 3, ID, SLOT)
    assert _lane.Board(fd).holds(SLOT)
    assert _lane.Board(fd).images() == ours.images()
    ours.empty(SLOT)
    assert not _lane.Board(fd).holds(SLOT)


def test_nothing_is_published_of_a_segment_that_the_lane_does_not_read(ours: _lane.Board) -> None:
    assert not ours.publish(INODE, 3, ID, (CLASS + 1) << 28 | 5)
    assert not ours.holds((CLASS + 1) << 28 | 5)
    ours.own_segment(CLASS, 1, 2)  # the daemon has made another file
    assert not ours.publish(INODE, 3, ID, SLOT)


def test_nothing_is_published_over_what_a_slot_holds(ours: _lane.Board) -> None:
    assert ours.publish(INODE, 3, ID, SLOT)
    assert ours.publish(INODE, 4, ID, SLOT)  # the same chunk, elsewhere in the image
    assert not ours.publish(INODE, 5, OTHER, SLOT)
    ours.empty(SLOT)
    assert ours.publish(INODE, 5, OTHER, SLOT)


@pytest.mark.parametrize(
    ("inode", "index", "slot"),
    [
        (INODE + 1, 3, SLOT),  # no such image
        (INODE, 4096 // LAYOUT["chunk_entry_bytes"], SLOT),  # behind its table
        (INODE, 2**63, SLOT),
        (INODE, 3, CLASS << 28 | LAYOUT["class_slots"]),  # no place on the board
        (INODE, 3, LAYOUT["classes"] << 28),
        (INODE, 3, 2**40),
    ],
)
def test_what_has_no_place_is_not_published(
    ours: _lane.Board, inode: int, index: int, slot: int
) -> None:
    assert not ours.publish(inode, index, ID, slot)


def test_zero_chunks_are_published_without_a_slot(ours: _lane.Board) -> None:
    assert ours.publish_zero(INODE, 3)
    assert not ours.publish_zero(INODE + 1, 3)
    assert not ours.publish_zero(INODE, 4096)


@pytest.mark.parametrize("half", [bytes(16), b"\xff" * 16])
def test_ids_that_look_like_no_tag_are_published_all_the_same(
    ours: _lane.Board, half: bytes
) -> None:
    assert ours.publish(INODE, 3, half + bytes(16), SLOT)
    assert ours.holds(SLOT)


def test_emptying_a_class_keeps_what_it_is_told(ours: _lane.Board) -> None:
    slots = [CLASS << 28 | index for index in (0, 1, 7, 8, 100_000, LAYOUT["class_slots"] - 1)]
    for slot in slots:
        assert ours.publish(INODE, 3, ID, slot)
    ours.empty_class(CLASS + 1, b"")
    ours.empty_class(CLASS, bytes([0b10000010]))
    assert [ours.holds(slot) for slot in slots] == [False, True, True, False, False, False]
    ours.empty_class(CLASS, b"")
    assert not any(map(ours.holds, slots))


def test_an_image_that_was_unset_is_gone_and_its_table_is_empty(fd: int, ours: _lane.Board) -> None:
    number = place(ours)
    assert ours.publish(INODE, 3, ID, SLOT)
    before = ours.generation(number)
    ours.unset_image(number)
    assert ours.images() == []
    assert not ours.publish(INODE, 3, ID, SLOT)
    place(ours)
    assert ours.generation(number) == before + 2
    table = LAYOUT["board_bytes"] - LAYOUT["tables_bytes"]
    assert os.pread(fd, 4096, table) == bytes(4096)


def test_what_cannot_be_an_entry_is_refused(ours: _lane.Board) -> None:
    number = ours.bucket(INODE)
    for wrong in (
        (number + LAYOUT["ways"], INODE, 1, 16, 0, 4096),
        (number, 0, 1, 16, 0, 4096),
        (number, INODE, 1, 11, 0, 4096),
        (number, INODE, 1, 16, LAYOUT["tables_bytes"], 4096),
        (1 << 20, INODE, 1, 16, 0, 4096),
    ):
        with pytest.raises(ValueError, match="cannot be"):
            ours.set_image(*wrong)
    with pytest.raises(ValueError, match="images"):
        ours.unset_image(1 << 20)
    with pytest.raises(ValueError, match="images"):
        ours.generation(1 << 20)
    with pytest.raises(ValueError, match="classes"):
        ours.empty_class(LAYOUT["classes"], b"")
    with pytest.raises(ValueError, match="classes"):
        ours.own_segment(LAYOUT["classes"], 1, 1)


def test_wrong_calls_are_errors(ours: _lane.Board) -> None:
    with pytest.raises(TypeError):
        ours.publish(INODE, 3, ID)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        ours.publish(INODE, 3, "no bytes", SLOT)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="32 bytes"):
        ours.publish(INODE, 3, b"short", SLOT)
    with pytest.raises(OverflowError):
        ours.empty(-1)
    with pytest.raises(TypeError):
        ours.empty()  # type: ignore[call-arg]


def test_an_empty_ring_has_nothing(ours: _lane.Board) -> None:
    assert ours.drain(1000) == (b"", b"")
    assert sum(ours.counters()["latencies"]) == 0
    assert ours.counters()["hits"] == 0


def test_forgetting_pages_loses_nothing(ours: _lane.Board) -> None:
    assert ours.publish(INODE, 3, ID, SLOT)
    ours.forget_pages()
    assert ours.holds(SLOT)
