import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import lmdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachefs.index.database import Database, open_database
from cachefs.index.residency import Batch, Placement, Residency
from cachefs.index.segments import INDEX_BITS, INDEX_MASK, slot_class

EXTENT_SLOTS = {0: 12, 3: 4}


def chunk(number: int) -> bytes:
    return number.to_bytes(32, "big")


def slot_of(number: int, index: int) -> int:
    return number << INDEX_BITS | index


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    (tmp_path / "segments").mkdir()
    database, _ = open_database(tmp_path / "index.lmdb", tmp_path / "segments")
    yield database
    database.close()


@pytest.fixture
def residency(database: Database) -> Iterator[Residency]:
    residency = Residency(database, dict(EXTENT_SLOTS))
    yield residency
    residency.close()


def commit(residency: Residency) -> None:
    batch = residency.take_batch()
    residency.commit(batch)
    residency.committed(batch)


def bitmap_slots(residency: Residency) -> set[int]:
    """Return the slots that the bitmaps say are occupied."""
    found = set()
    for row in residency.extents():
        bits = np.unpackbits(np.frombuffer(row.bitmap, np.uint8), bitorder="little")
        assert row.slots == EXTENT_SLOTS[row.number]
        assert not bits[row.slots :].any()
        first = row.extent * row.slots
        found |= {slot_of(row.number, first + bit) for bit in np.flatnonzero(bits).tolist()}
    return found


def test_a_change_is_seen_at_once_and_stays_through_its_commit(residency: Residency) -> None:
    place = Placement(5, 4096, 7)
    residency.put(chunk(1), place)
    assert residency.get(chunk(1)) == place
    batch = residency.take_batch()
    assert residency.get(chunk(1)) == place
    residency.drop(chunk(1), 5)
    assert residency.get(chunk(1)) is None
    residency.commit(batch)
    residency.committed(batch)
    assert residency.get(chunk(1)) is None
    assert residency.chunk_in(5) is None
    commit(residency)
    assert residency.get(chunk(1)) is None
    assert residency.scan(-1, 10) == []


def test_nothing_to_commit_is_known(residency: Residency) -> None:
    assert residency.take_batch().is_empty
    residency.drop_extent(0, 1)
    assert not residency.take_batch().is_empty


def test_another_opening_sees_what_was_committed_only(
    database: Database, residency: Residency
) -> None:
    residency.put(chunk(1), Placement(1, 10, 1))
    commit(residency)
    residency.put(chunk(2), Placement(2, 10, 1))
    later = Residency(database, dict(EXTENT_SLOTS))
    assert later.get(chunk(1)) == Placement(1, 10, 1)
    assert later.get(chunk(2)) is None
    assert bitmap_slots(later) == {1}
    later.close()


def test_a_scan_goes_on_where_it_ended(residency: Residency) -> None:
    slots = [slot_of(0, 3), slot_of(0, 7), slot_of(3, 0), slot_of(3, 9)]
    for number, slot in enumerate(slots):
        residency.put(chunk(number), Placement(slot, 1, 1))
    commit(residency)
    assert residency.scan(-1, 2) == [(slots[0], chunk(0)), (slots[1], chunk(1))]
    assert [slot for slot, _ in residency.scan(slots[1], 2)] == slots[2:]
    assert residency.scan(slots[3], 2) == []


def test_resident_bytes_are_those_of_the_chunks_that_are_here(residency: Residency) -> None:
    residency.put(chunk(1), Placement(1, 10, 1))
    residency.put(chunk(2), Placement(2, 300, 1))
    commit(residency)
    assert residency.count_resident(lambda: [chunk(2), chunk(1), chunk(9)]) == 310


def test_a_batch_that_could_not_be_written_is_tried_again_beneath_newer_changes(
    residency: Residency,
) -> None:
    residency.put(chunk(1), Placement(1, 10, 1))
    residency.put(chunk(2), Placement(2, 10, 1))
    residency.drop_extent(3, 5)
    batch = residency.take_batch()
    residency.drop(chunk(1), 1)
    residency.committed(batch, failed=True)
    assert residency.get(chunk(1)) is None
    assert residency.get(chunk(2)) == Placement(2, 10, 1)
    again = residency.take_batch()
    assert again.dropped_extents == {(3, 5)}
    assert again.residency == {chunk(1): None, chunk(2): Placement(2, 10, 1)}


def test_where_lmdb_begins_no_transaction_any_more_reads_go_on(
    residency: Residency, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an error of the disk in its last write; readers are answered while the process ends."""
    residency.put(chunk(1), Placement(1, 10, 1))
    commit(residency)
    residency.put(chunk(2), Placement(2, 10, 1))
    batch = residency.take_batch()
    with monkeypatch.context() as patch:
        patch.setattr(database, "env", Panicked())
        with pytest.raises(lmdb.PanicError):
            residency.committed(batch, failed=True)
        assert residency.get(chunk(1)) == residency.peek(chunk(1)) == Placement(1, 10, 1)
        assert residency.get(chunk(2)) == Placement(2, 10, 1)
        assert residency.get(chunk(3)) is None


class Panicked:
    """An environment after a fatal error."""

    def begin(self, **_: object) -> lmdb.Transaction:
        raise lmdb.PanicError("environment had fatal error")


def test_half_a_batch_is_never_written(
    database: Database, residency: Residency, monkeypatch: pytest.MonkeyPatch
) -> None:
    residency.put(chunk(1), Placement(1, 10, 1))
    batch = residency.take_batch()

    def fail(*_: object) -> None:
        raise lmdb.Error("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(residency, "_write_bitmaps", fail)
        with pytest.raises(lmdb.Error):
            residency.commit(batch)
    residency.committed(batch, failed=True)
    later = Residency(database, dict(EXTENT_SLOTS))
    assert later.get(chunk(1)) is None
    assert later.scan(-1, 9) == []
    later.close()


class Model:
    """Residency as two dicts: what is seen, and what an unclean stop would leave."""

    def __init__(self) -> None:
        self.seen: dict[bytes, Placement] = {}
        self.committed: dict[bytes, Placement] = {}
        self.batch: dict[bytes, Placement] | None = None
        """What will be committed with the batch that is under way."""

    def slots(self) -> dict[int, bytes]:
        return {place.slot: chunk_id for chunk_id, place in self.seen.items()}


ACTIONS = ["put", "put", "put", "drop", "drop", "renew", "take", "write", "fail"]


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.integers(5, 80))
def test_residency_is_a_dict_that_survives_failed_commits(seed: int, steps: int) -> None:
    """Puts, drops and commits that succeed or fail, in any order, against dicts."""
    chosen = random.Random(seed)
    all_slots = [
        slot_of(number, i) for number, count in EXTENT_SLOTS.items() for i in range(count * 2)
    ]
    with _opened() as (database, residency):
        model = Model()
        batch: Batch | None = None
        for _ in range(steps):
            action = chosen.choice(ACTIONS)
            chunk_id = chunk(chosen.randrange(12))
            place = model.seen.get(chunk_id)
            free = [slot for slot in all_slots if slot not in model.slots()]
            if action == "put" and place is None and free:
                placed = Placement(
                    chosen.choice(free), chosen.randrange(1, 4096), chosen.randrange(9)
                )
                residency.put(chunk_id, placed)
                model.seen[chunk_id] = placed
            elif action == "drop" and place is not None:
                residency.drop(chunk_id, place.slot)
                del model.seen[chunk_id]
            elif action == "renew" and place is not None:
                model.seen[chunk_id] = place._replace(epoch=99)
                residency.put(chunk_id, model.seen[chunk_id])
            elif action == "take" and batch is None:
                batch, model.batch = residency.take_batch(), dict(model.seen)
            elif action in {"write", "fail"} and batch is not None:
                if action == "write":
                    residency.commit(batch)
                    model.committed = model.batch or {}
                residency.committed(batch, failed=action == "fail")
                batch = model.batch = None
            _compare(residency, model, all_slots)
        _compare_stopped(database, model)


@contextmanager
def _opened() -> Iterator[tuple[Database, Residency]]:
    """Open a residency in a folder of its own, for one example."""
    with TemporaryDirectory() as name:
        path = Path(name)
        (path / "segments").mkdir()
        database, _ = open_database(path / "index.lmdb", path / "segments")
        residency = Residency(database, dict(EXTENT_SLOTS))
        yield database, residency
        residency.close()
        database.close()


def _compare(residency: Residency, model: Model, all_slots: list[int]) -> None:
    held = model.slots()
    for number in range(12):
        assert residency.get(chunk(number)) == model.seen.get(chunk(number))
    for slot in all_slots:
        assert residency.chunk_in(slot) == held.get(slot)


def _compare_stopped(database: Database, model: Model) -> None:
    """Open again as after a kill: exactly what was committed, in all three tables."""
    later = Residency(database, dict(EXTENT_SLOTS))
    for number in range(12):
        assert later.get(chunk(number)) == model.committed.get(chunk(number))
    expected = sorted((place.slot, chunk_id) for chunk_id, place in model.committed.items())
    assert later.scan(-1, 1000) == expected
    assert bitmap_slots(later) == {slot for slot, _ in expected}
    later.close()


def test_the_bitmap_of_an_extent_that_is_given_back_is_gone(residency: Residency) -> None:
    for index in range(4, 8):
        residency.put(chunk(index), Placement(slot_of(3, index), 1, 1))
    residency.put(chunk(99), Placement(slot_of(3, 0), 1, 1))
    commit(residency)
    for index in range(4, 8):
        residency.drop(chunk(index), slot_of(3, index))
    residency.drop_extent(3, 1)
    commit(residency)
    assert [(row.number, row.extent) for row in residency.extents()] == [(3, 0)]
    assert bitmap_slots(residency) == {slot_of(3, 0)}
    assert slot_class(slot_of(3, 5)) == 3
    assert slot_of(3, 5) & INDEX_MASK == 5


@given(st.integers(0, 16 * 8 - 1))
@settings(max_examples=60)
def test_a_record_with_a_flipped_bit_is_no_record(bit: int) -> None:
    with TemporaryDirectory() as folder:
        (Path(folder) / "segments").mkdir()
        database, _ = open_database(Path(folder) / "index.lmdb", Path(folder) / "segments")
        residency = Residency(database, dict(EXTENT_SLOTS))
        residency.put(chunk(1), Placement(slot_of(3, 2), 100, 7))
        commit(residency)
        with database.env.begin(write=True, db=database.residency) as txn:
            record = bytearray(txn.get(chunk(1)) or b"")
            record[bit // 8] ^= 1 << bit % 8
            txn.put(chunk(1), bytes(record))
            txn.put(chunk(2), bytes(record[:-1]))
        commit(residency)
        for found in (chunk(1), chunk(2)):
            assert residency.get(found) is None
            assert residency.peek(found) is None
        assert residency.count_resident(lambda: [chunk(1), chunk(2)]) == 0
        residency.close()
        database.close()


def test_a_record_says_nothing_of_another_chunk(residency: Residency, database: Database) -> None:
    residency.put(chunk(1), Placement(slot_of(3, 2), 100, 7))
    commit(residency)
    with database.env.begin(write=True, db=database.residency) as txn:
        txn.put(chunk(2), txn.get(chunk(1)) or b"")
    commit(residency)
    assert residency.get(chunk(1)) == Placement(slot_of(3, 2), 100, 7)
    assert residency.get(chunk(2)) is None
