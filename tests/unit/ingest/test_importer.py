import os
import threading
from pathlib import Path

import pytest

from cachefs.errors import ConflictError, StoreUnavailableError, UsageError
from cachefs.ingest import packing
from cachefs.ingest.catalog import Catalog, open_catalog
from cachefs.ingest.importer import ImportOptions, import_image
from cachefs.ingest.refresh import refresh_catalog
from cachefs.ingest.source import BATCH_BYTES, open_source
from cachefs.store.layout import pack_key
from cachefs.store.store import Store
from cachefs.units import KIB, MIB
from tests.stores import (
    CHUNK,
    catalog_folder,
    exported,
    flip,
    import_bytes,
    import_file,
    new_store,
    pack_paths,
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return new_store(tmp_path)


def random_chunks(count: int) -> list[bytes]:
    return [os.urandom(CHUNK) for _ in range(count)]


@pytest.mark.parametrize(
    "size_bytes", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 10 * CHUNK + 5, BATCH_BYTES * 3 + 1]
)
@pytest.mark.parametrize("chunk_bytes", [4 * KIB, 64 * KIB, 4 * MIB])
def test_what_is_imported_comes_out_again(
    store: Store, tmp_path: Path, size_bytes: int, chunk_bytes: int
) -> None:
    data = os.urandom(size_bytes)
    import_bytes(store, data, chunk_bytes=chunk_bytes)
    assert exported(store, tmp_path) == data


def test_the_figures_are_exact(store: Store, tmp_path: Path) -> None:
    one, two, three = random_chunks(3)
    zero = bytes(CHUNK)
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.write(one + zero + two + one + one)
        file.seek(100 * CHUNK)
        file.write(three + two[:100])
    report = import_file(store, path)
    frame_bytes = CHUNK + 8  # random chunks are kept plain, behind a header
    assert report.size_bytes == 101 * CHUNK + 100
    assert report.hole_bytes == 95 * CHUNK
    assert report.zero_bytes == 96 * CHUNK
    assert report.duplicate_bytes == 2 * CHUNK
    assert report.new_bytes == 3 * CHUNK + 100
    assert report.new_stored_bytes == report.stored_bytes == 3 * frame_bytes + 108
    assert report.data_bytes == 5 * CHUNK + 100
    assert report.packs_written == 1
    assert report.done_bytes == report.size_bytes
    current = store.image("image")[0].current
    assert (current.data_bytes, current.stored_bytes) == (5 * CHUNK + 100, report.stored_bytes)
    assert exported(store, tmp_path) == path.read_bytes()


def test_a_second_image_stores_only_what_is_new(store: Store, tmp_path: Path) -> None:
    chunks = random_chunks(20)
    import_bytes(store, b"".join(chunks), "first")
    changed = chunks[:5] + random_chunks(2) + chunks[7:]
    report = import_bytes(store, b"".join(changed), "second")
    assert report.duplicate_bytes == 18 * CHUNK
    assert report.new_bytes == 2 * CHUNK
    assert report.stored_bytes == 20 * (CHUNK + 8)
    assert exported(store, tmp_path, "second") == b"".join(changed)
    assert exported(store, tmp_path, "first") == b"".join(chunks)


def test_the_same_image_again_writes_no_pack(store: Store) -> None:
    data = os.urandom(10 * CHUNK)
    first = import_bytes(store, data)
    second = import_bytes(store, data)
    assert (first.version, second.version) == (1, 2)
    assert second.packs_written == second.new_bytes == 0
    assert first.manifest == second.manifest
    assert len(pack_paths(store)) == 1


def test_without_its_catalog_an_import_finds_the_same(store: Store) -> None:
    data = os.urandom(10 * CHUNK)
    import_bytes(store, data)
    for path in catalog_folder(store).iterdir():
        path.unlink()
    assert import_bytes(store, data).duplicate_bytes == 10 * CHUNK


def test_duplicates_are_found_across_batches_and_packs(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "TARGET_PACK_BYTES", 100 * KIB)
    monkeypatch.setattr(packing, "PACKS_IN_FLIGHT", 1)
    block = os.urandom(2 * MIB)
    data = block * 10
    report = import_bytes(store, data)
    assert report.new_bytes == 2 * MIB
    assert report.duplicate_bytes == 18 * MIB
    assert report.packs_written == len(pack_paths(store)) == 21
    assert exported(store, tmp_path) == data


@pytest.mark.parametrize("failing", ["add", "find", "both"])
def test_a_failing_catalog_costs_nothing_but_memory(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    monkeypatch.setattr(packing, "TARGET_PACK_BYTES", 100 * KIB)
    if failing in {"add", "both"}:
        monkeypatch.setattr(Catalog, "add", lambda _self, _packs: False)
    if failing in {"find", "both"}:
        monkeypatch.setattr(Catalog, "find", lambda _self, _ids: {})
    data = os.urandom(2 * MIB) * 5
    report = import_bytes(store, data)
    assert exported(store, tmp_path) == data
    if failing != "find":
        assert report.new_bytes == 2 * MIB


def test_a_pack_that_is_gone_is_not_built_on(store: Store, tmp_path: Path) -> None:
    data = os.urandom(10 * CHUNK)
    import_bytes(store, data, "first")
    pack_paths(store)[0].unlink()
    assert import_bytes(store, data, "second").new_bytes == 10 * CHUNK
    assert exported(store, tmp_path, "second") == data


def test_a_pack_with_a_damaged_index_is_not_built_on(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = os.urandom(10 * CHUNK)
    import_bytes(store, data, "first")
    for path in catalog_folder(store).iterdir():
        path.unlink()
    path = pack_paths(store)[0]
    flip(path, path.stat().st_size - 100)
    other = os.urandom(CHUNK)
    assert import_bytes(store, data + other, "second").new_bytes == 11 * CHUNK
    assert exported(store, tmp_path, "second") == data + other
    assert "cachefs verify" in caplog.text


def test_a_pack_that_goes_while_it_is_built_on_fails_the_import(store: Store) -> None:
    data = os.urandom(10 * CHUNK)
    import_bytes(store, data, "first")
    fd = os.memfd_create("image")
    os.write(fd, data)
    gone = threading.Event()

    def remove(_report: object) -> None:
        if not gone.is_set():
            pack_paths(store)[0].unlink()
            gone.set()

    with (
        open_source(f"/proc/self/fd/{fd}") as source,
        pytest.raises(ConflictError, match="import it again"),
    ):
        import_image(store, source, "second", ImportOptions(catalog_folder(store), CHUNK), remove)
    os.close(fd)
    assert not store.has_image("second")


def test_a_catalog_follows_the_store(store: Store) -> None:
    first = import_bytes(store, os.urandom(CHUNK), "a")
    import_bytes(store, os.urandom(CHUNK), "b")
    assert first.packs_written == 1
    folder = catalog_folder(store).with_name("other")
    with open_catalog(folder, store.identity) as catalog:
        assert refresh_catalog(catalog, store) == 2
        assert catalog.packs() == set(store.pack_ids())
        gone = next(store.pack_ids())
        store.objects.delete(pack_key(gone))
        assert refresh_catalog(catalog, store) == 1
        assert catalog.packs() == set(store.pack_ids())


def test_an_outage_leaves_the_catalog_as_it_is(store: Store, tmp_path: Path) -> None:
    import_bytes(store, os.urandom(CHUNK))
    packs = tmp_path / "store" / "packs"
    packs.rename(tmp_path / "away")
    with open_catalog(catalog_folder(store), store.identity) as catalog:
        known = catalog.packs()
        with pytest.raises(StoreUnavailableError):
            refresh_catalog(catalog, store)
        assert catalog.packs() == known
        assert len(known) == 1


def test_a_store_that_goes_away_fails_the_import(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(40 * MIB))
    packs = tmp_path / "store" / "packs"

    def take_away(_report: object) -> None:
        if packs.exists():
            packs.rename(tmp_path / "away")

    options = ImportOptions(catalog_folder(store), 64 * KIB)
    with open_source(str(path)) as source, pytest.raises(StoreUnavailableError):
        import_image(store, source, "image", options, take_away)
    assert not store.has_image("image")
    assert not packs.exists()


def test_what_cannot_be_is_refused_before_anything_is_read(store: Store) -> None:
    with pytest.raises(UsageError, match="power of two"):
        import_bytes(store, b"x", chunk_bytes=5000)
    with pytest.raises(UsageError, match="image name"):
        import_bytes(store, b"x", "../etc")
    assert pack_paths(store) == []


def test_memory_does_not_grow_with_the_image(store: Store, tmp_path: Path) -> None:
    """Buffers are used again: far fewer are made than batches are read."""
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(64 * KIB) * 640)
    made = []
    with open_source(str(path)) as source:
        original = source.batches

        def counted(chunk_bytes: int, take: object) -> object:
            def take_counted() -> memoryview:
                buffer = take()  # type: ignore[operator]
                made.append(buffer.obj)
                return buffer  # type: ignore[no-any-return]

            return original(chunk_bytes, take_counted)

        source.batches = counted  # type: ignore[method-assign, assignment]
        options = ImportOptions(catalog_folder(store), 64 * KIB, threads=1)
        import_image(store, source, "image", options)
    assert len(made) > 10
    assert len({id(buffer) for buffer in made}) <= 5
