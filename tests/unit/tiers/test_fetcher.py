import os
import pickle
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from cachefs.errors import (
    CacheError,
    CachefsError,
    CorruptError,
    FormatError,
    NotFoundError,
    StoreUnavailableError,
)
from cachefs.index.manifest_table import ManifestTable, PageCache
from cachefs.store.store import Store, create_store
from cachefs.tiers import fetcher as module
from cachefs.tiers.fetcher import Fetcher
from cachefs.tiers.fetcher_process import Inbox
from cachefs.tiers.jobs import (
    LENGTH,
    Answer,
    ChunkJob,
    ChunksDone,
    ChunksLanded,
    Done,
    Failed,
    Listing,
    ListJob,
    Outcome,
    TableJob,
    Wanted,
    encode,
)
from cachefs.units import MIB
from tests.caches import table_of
from tests.stores import CHUNK, flip, import_bytes, new_store, pack_paths

DATA = Random(1).randbytes(6 * CHUNK + 100)
CHUNKS = 7


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = new_store(tmp_path)
    import_bytes(store, DATA)
    return store


@pytest.fixture
def segment(tmp_path: Path) -> Path:
    path = tmp_path / "segment"
    path.write_bytes(b"")
    return path


@pytest.fixture
def fetcher(store: Store) -> Fetcher:
    return Fetcher(store.url, store.identity)


def wanted_of(store: Store, folder: Path, segment: str) -> list[Wanted]:
    """Return what fetches each chunk of the image into slots that lie apart."""
    table = table_of(store, folder)
    refs = [table.chunk(index) for index in range(CHUNKS)]
    table.close()
    return [
        Wanted(
            ref.id, ref.plain_bytes, ref.pack, ref.offset, ref.frame_bytes, segment, n * 2 * CHUNK
        )
        for n, ref in enumerate(refs)
    ]


def fetch(fetcher: Fetcher, wanted: list[Wanted]) -> ChunksDone:
    answer = fetcher.answer(ChunkJob(7, tuple(wanted)))
    assert isinstance(answer, ChunksDone)
    assert answer.number == 7
    return answer


def outcomes(answer: ChunksDone) -> list[Outcome]:
    return [fetched.outcome for fetched in answer.fetched]


def plain(index: int) -> bytes:
    return DATA[index * CHUNK : (index + 1) * CHUNK]


def slot(segment: Path, index: int) -> bytes:
    return segment.read_bytes()[index * 2 * CHUNK :][: len(plain(index))]


def test_chunks_come_into_their_slots_with_one_request(
    store: Store, fetcher: Fetcher, tmp_path: Path, segment: Path
) -> None:
    wanted = wanted_of(store, tmp_path, str(segment))
    answer = fetch(fetcher, wanted[::-1])
    assert outcomes(answer) == [Outcome.KEPT] * CHUNKS
    assert not any(fetched.plain for fetched in answer.fetched)
    assert [slot(segment, index) for index in range(CHUNKS)] == [plain(i) for i in range(CHUNKS)]
    assert answer.requests == 1
    assert answer.frame_bytes == sum(chunk.frame_bytes for chunk in wanted)


def test_without_a_slot_the_bytes_come_with_the_answer(
    store: Store, fetcher: Fetcher, tmp_path: Path
) -> None:
    answer = fetch(fetcher, wanted_of(store, tmp_path, ""))
    assert outcomes(answer) == [Outcome.UNKEPT] * CHUNKS
    assert [fetched.plain for fetched in answer.fetched] == [plain(i) for i in range(CHUNKS)]


@pytest.mark.parametrize("segment_path", ["/dev/full", "nowhere/4096"])
def test_a_slot_that_cannot_be_written_does_not_fail_the_read(
    store: Store, fetcher: Fetcher, tmp_path: Path, segment_path: str
) -> None:
    answer = fetch(fetcher, wanted_of(store, tmp_path, str(tmp_path / segment_path)))
    assert outcomes(answer) == [Outcome.UNKEPT] * CHUNKS
    assert [fetched.plain for fetched in answer.fetched] == [plain(i) for i in range(CHUNKS)]
    assert "cannot write to L1" in answer.fetched[0].message


def test_a_write_in_pieces_is_completed(
    store: Store, fetcher: Fetcher, tmp_path: Path, segment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        os, "pwritev", lambda fd, parts, at: os.pwrite(fd, b"".join(parts)[:1000], at)
    )
    answer = fetch(fetcher, wanted_of(store, tmp_path, str(segment)))
    assert outcomes(answer) == [Outcome.KEPT] * CHUNKS
    assert [slot(segment, index) for index in range(CHUNKS)] == [plain(i) for i in range(CHUNKS)]


def test_a_disk_that_takes_no_more_leaves_the_chunk_unkept(
    store: Store, fetcher: Fetcher, tmp_path: Path, segment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "pwritev", lambda fd, parts, at: 0)
    answer = fetch(fetcher, wanted_of(store, tmp_path, str(segment)))
    assert outcomes(answer) == [Outcome.UNKEPT] * CHUNKS


def test_a_flipped_bit_never_reaches_a_slot_nor_harms_a_neighbour(
    store: Store, fetcher: Fetcher, tmp_path: Path, segment: Path
) -> None:
    wanted = wanted_of(store, tmp_path, str(segment))
    bad = wanted[3]
    [pack] = pack_paths(store)
    for offset in range(bad.offset, bad.offset + bad.frame_bytes, 97):
        flip(pack, offset, offset % 8)
        segment.write_bytes(b"")
        answer = fetch(fetcher, wanted)
        assert outcomes(answer) == [*[Outcome.KEPT] * 3, Outcome.CORRUPT, *[Outcome.KEPT] * 3]
        assert not any(slot(segment, 3))
        assert bad.chunk_id.hex()[:16] in answer.fetched[3].message
        assert store.url in answer.fetched[3].message
        flip(pack, offset, offset % 8)


def test_a_frame_of_a_later_format_is_corrupt_to_us(
    store: Store, fetcher: Fetcher, tmp_path: Path, segment: Path
) -> None:
    wanted = wanted_of(store, tmp_path, str(segment))
    flip(pack_paths(store)[0], wanted[0].offset, 7)  # another codec
    assert fetch(fetcher, wanted[:1]).fetched[0].outcome is Outcome.CORRUPT


def test_a_frame_of_another_chunk_is_corrupt(
    store: Store, fetcher: Fetcher, tmp_path: Path, segment: Path
) -> None:
    wanted = wanted_of(store, tmp_path, str(segment))
    swapped = wanted[0]._replace(offset=wanted[1].offset, frame_bytes=wanted[1].frame_bytes)
    [fetched] = fetch(fetcher, [swapped]).fetched
    assert fetched.outcome is Outcome.CORRUPT
    assert "content differs" in fetched.message


def test_frames_before_a_cut_are_still_read(
    store: Store, fetcher: Fetcher, tmp_path: Path, segment: Path
) -> None:
    wanted = wanted_of(store, tmp_path, str(segment))
    os.truncate(pack_paths(store)[0], wanted[4].offset + 10)
    answer = fetch(fetcher, wanted)
    assert outcomes(answer) == [*[Outcome.KEPT] * 4, *[Outcome.CORRUPT] * 3]
    assert "cut short" in answer.fetched[6].message


def test_a_pack_that_is_gone_is_missing_and_others_are_read(
    store: Store, fetcher: Fetcher, tmp_path: Path, segment: Path
) -> None:
    wanted = wanted_of(store, tmp_path, str(segment))
    other = Random(2).randbytes(CHUNK)
    import_bytes(store, other, "other")
    table = table_of(store, tmp_path, "other")
    ref = table.chunk(0)
    table.close()
    gone = Path(store.url.removeprefix("file://")) / "packs" / ref.pack.hex()[:2] / ref.pack.hex()
    gone.unlink()
    lost = Wanted(ref.id, ref.plain_bytes, ref.pack, ref.offset, ref.frame_bytes, str(segment), 0)
    answer = fetch(fetcher, [lost, wanted[1]])
    assert outcomes(answer) == [Outcome.MISSING, Outcome.KEPT]


def test_an_outage_is_unavailable_and_over_when_it_is_over(
    store: Store, fetcher: Fetcher, tmp_path: Path, segment: Path
) -> None:
    wanted = wanted_of(store, tmp_path, str(segment))
    root = Path(store.url.removeprefix("file://"))
    root.rename(tmp_path / "away")
    assert outcomes(fetch(fetcher, wanted)) == [Outcome.UNAVAILABLE] * CHUNKS  # never opened
    (tmp_path / "away").rename(root)
    assert outcomes(fetch(fetcher, wanted)) == [Outcome.KEPT] * CHUNKS
    root.rename(tmp_path / "away")
    assert outcomes(fetch(fetcher, wanted)) == [Outcome.UNAVAILABLE] * CHUNKS
    root.mkdir()  # a mount point with nothing mounted
    assert outcomes(fetch(fetcher, wanted)) == [Outcome.UNAVAILABLE] * CHUNKS


def test_another_store_in_its_place_is_not_read(
    store: Store, fetcher: Fetcher, tmp_path: Path, segment: Path
) -> None:
    wanted = wanted_of(store, tmp_path, str(segment))
    root = Path(store.url.removeprefix("file://"))
    shutil.rmtree(root)
    import_bytes(create_store(str(root)), DATA)
    [first, *_] = fetch(fetcher, wanted).fetched
    assert first.outcome is Outcome.UNAVAILABLE
    assert "now another store" in first.message


# ------------------------------------------------------------------------------ tables and lists
def test_a_table_is_written_where_it_was_asked_for(
    store: Store, fetcher: Fetcher, tmp_path: Path
) -> None:
    manifest_id = store.image("image")[0].current.manifest
    path = tmp_path / "table"
    assert fetcher.answer(TableJob(3, manifest_id, (str(path),))) == Done(3, None)
    table = ManifestTable(path, PageCache(MIB))
    assert table.size_bytes == len(DATA)
    table.close()


def test_a_folder_that_takes_no_table_is_passed_over(
    store: Store, fetcher: Fetcher, tmp_path: Path
) -> None:
    manifest_id = store.image("image")[0].current.manifest
    paths = (str(tmp_path / "nowhere" / "t"), str(tmp_path / "t"))
    assert isinstance(fetcher.answer(TableJob(3, manifest_id, paths)), Done)
    assert (tmp_path / "t").exists()
    assert isinstance(_error(fetcher.answer(TableJob(4, manifest_id, paths[:1]))), CacheError)


def _error(answer: Answer) -> CachefsError:
    """Return the error of an answer, as it comes through the socket."""
    assert isinstance(answer, Failed)
    error = pickle.loads(pickle.dumps(answer.error))
    assert isinstance(error, CachefsError)
    assert str(error) == str(answer.error)
    return error


def test_a_manifest_that_cannot_be_had_is_an_error(
    store: Store, fetcher: Fetcher, tmp_path: Path
) -> None:
    manifest_id = store.image("image")[0].current.manifest
    job = TableJob(3, manifest_id, (str(tmp_path / "t"),))
    root = Path(store.url.removeprefix("file://"))
    path = root / "manifests" / manifest_id
    flip(path, path.stat().st_size - 5)
    assert isinstance(_error(fetcher.answer(job)), CorruptError)
    path.unlink()
    assert isinstance(_error(fetcher.answer(job)), NotFoundError)
    root.rename(tmp_path / "away")
    assert isinstance(_error(fetcher.answer(job)), StoreUnavailableError)
    assert not (tmp_path / "t").exists()


def _list(fetcher: Fetcher, known: dict[str, str]) -> Listing:
    answer = fetcher.answer(ListJob(1, known))
    assert isinstance(answer, Done)
    assert answer.result is not None
    return answer.result


def test_a_list_reads_only_what_is_new(store: Store, fetcher: Fetcher) -> None:
    import_bytes(store, DATA, "below/other")
    first = _list(fetcher, {})
    assert set(first.images) == set(first.etags) == {"image", "below/other"}
    assert _list(fetcher, first.etags).images == {}
    import_bytes(store, DATA[1:])
    changed = _list(fetcher, first.etags)
    assert set(changed.images) == {"image"}
    assert changed.images["image"].current.number == 2
    assert changed.etags["below/other"] == first.etags["below/other"]


def test_a_record_that_cannot_be_understood_hides_no_other(store: Store, fetcher: Fetcher) -> None:
    import_bytes(store, DATA, "other")
    path = Path(store.url.removeprefix("file://")) / "images" / "image.json"
    path.write_text("{")
    found = _list(fetcher, {})
    assert set(found.images) == {"other"}
    assert set(found.broken) == {"image"}
    assert "image.json" in found.broken["image"]


def test_an_outage_in_the_middle_of_a_list_is_no_list(
    store: Store, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Store, name: str) -> None:
        raise StoreUnavailableError("away")

    monkeypatch.setattr(Store, "image", fail)
    assert isinstance(_error(fetcher.answer(ListJob(1, {}))), StoreUnavailableError)


def test_an_image_that_goes_while_it_is_listed_is_left_out(
    store: Store, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(self: Store, name: str) -> None:
        raise NotFoundError("gone")

    monkeypatch.setattr(Store, "image", gone)
    assert _list(fetcher, {}).images == {}


def test_a_foreign_store_is_refused(store: Store) -> None:
    fetcher = Fetcher(store.url, replace(store, identity="another").identity)
    assert isinstance(_error(fetcher.answer(ListJob(1, {}))), FormatError)


def test_a_fetcher_works_until_its_daemon_hangs_up(
    store: Store, tmp_path: Path, segment: Path
) -> None:
    wanted = wanted_of(store, tmp_path, str(segment))
    ours, theirs = socket.socketpair()
    fd = theirs.fileno()
    arguments = [str(fd), str(os.getpid()), store.url, store.identity, "", "", "1"]
    command = [sys.executable, "-m", "cachefs.tiers.fetcher_process", *arguments]
    with ours, theirs, subprocess.Popen(command, pass_fds=[fd]) as process:
        theirs.close()
        for _ in range(2):
            ours.sendall(encode(ChunkJob(7, tuple(wanted))))
            length = LENGTH.unpack(ours.recv(LENGTH.size, socket.MSG_WAITALL))[0]
            answer = pickle.loads(ours.recv(length, socket.MSG_WAITALL))
            assert outcomes(answer) == [Outcome.KEPT] * CHUNKS
        ours.sendall(encode(ChunkJob(7, tuple(wanted)))[:-5])  # killed in the middle of a job
        ours.close()
        assert process.wait(timeout=60) == 0


def test_a_fetcher_whose_daemon_is_gone_already_does_not_start(store: Store) -> None:
    arguments = ["0", str(2**22 + 1), store.url, store.identity, "", "", "1"]
    command = [sys.executable, "-m", "cachefs.tiers.fetcher_process", *arguments]
    assert subprocess.run(command, timeout=60, check=False).returncode == 1


def test_of_the_jobs_that_wait_those_that_somebody_needs_are_handed_out_first() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        inbox = Inbox(theirs)
        for number, is_ahead in ((9, True), (8, False), (7, True), (6, False)):
            ours.sendall(encode(ChunkJob(number, (), is_ahead)))
        found = [inbox.next() for _ in range(3)]
        ours.sendall(encode(ChunkJob(5, (), is_ahead=False)))
        found += [inbox.next(), inbox.next()]
        ours.close()
        assert [job.number for job in found if job] == [8, 6, 9, 5, 7]
        assert inbox.next() is None


def test_of_a_job_ahead_it_is_told_what_has_landed_before_all_has(
    store: Store, fetcher: Fetcher, tmp_path: Path, segment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_NEWS_BYTES", 2 * CHUNK)
    told: list[ChunksLanded] = []
    landed: list[bytes] = []

    def tell(news: ChunksLanded) -> None:
        told.append(news)
        landed.extend(slot(segment, member) for member in news.members)

    fetcher.tell = tell
    wanted = wanted_of(store, tmp_path, str(segment))
    fetcher.answer(ChunkJob(1, tuple(wanted)))
    assert not told
    answer = fetcher.answer(ChunkJob(2, tuple(wanted), is_ahead=True))
    assert isinstance(answer, ChunksDone)
    assert outcomes(answer) == [Outcome.KEPT] * CHUNKS
    members = [member for news in told for member in news.members]
    assert len(told) >= 2
    assert len(set(members)) == len(members)
    assert landed == [plain(member) for member in members]


def test_a_job_ahead_reads_smaller_gaps_along(
    store: Store, fetcher: Fetcher, tmp_path: Path, segment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_GAP_AHEAD", 0)
    wanted = wanted_of(store, tmp_path, str(segment))[::2]
    needed = fetcher.answer(ChunkJob(1, tuple(wanted)))
    ahead = fetcher.answer(ChunkJob(2, tuple(wanted), is_ahead=True))
    assert isinstance(needed, ChunksDone)
    assert isinstance(ahead, ChunksDone)
    assert needed.requests == 1
    assert needed.frame_bytes > ahead.frame_bytes == sum(one.frame_bytes for one in wanted)
    assert ahead.requests == len(wanted)
    assert outcomes(ahead) == [Outcome.KEPT] * len(wanted)
