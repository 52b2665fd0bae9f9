import os
import re
import threading
from pathlib import Path

import pytest

from cachefs.errors import CachefsError, CorruptError, NotFoundError, UsageError
from cachefs.ingest.chunks import find_version, read_chunks
from cachefs.ingest.export import export_to_file, export_to_stream
from cachefs.model.manifest import Manifest
from cachefs.store.store import Store
from tests.stores import CHUNK, flip, import_bytes, import_file, new_store, pack_paths


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return new_store(tmp_path)


def newest(store: Store) -> Manifest:
    return store.manifest(store.image("image")[0].current.manifest)


def export(store: Store, path: Path, force: bool = False) -> None:
    export_to_file(store, "image", newest(store), str(path), force, lambda _: None)


def sparse(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        for index in (0, 7, 300, 301, 900):
            file.seek(index * CHUNK)
            file.write(os.urandom(CHUNK))
        file.truncate(2000 * CHUNK + 9)
    return path


def test_holes_stay_holes(store: Store, tmp_path: Path) -> None:
    source = sparse(tmp_path)
    import_file(store, source)
    export(store, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == source.read_bytes()
    assert (tmp_path / "out").stat().st_blocks <= source.stat().st_blocks


def test_a_stream_has_its_zeros(store: Store, tmp_path: Path) -> None:
    source = sparse(tmp_path)
    import_file(store, source)
    read_fd, write_fd = os.pipe()
    seen: list[int] = []

    def write() -> None:
        export_to_stream(store, "image", newest(store), write_fd, seen.append)
        os.close(write_fd)

    writer = threading.Thread(target=write)
    writer.start()
    with open(read_fd, "rb") as file:
        assert file.read() == source.read_bytes()
    writer.join()
    assert seen == sorted(seen)
    assert seen[-1] == source.stat().st_size


def test_a_file_is_replaced_only_by_force(store: Store, tmp_path: Path) -> None:
    import_bytes(store, b"new")
    target = tmp_path / "out"
    target.write_bytes(b"old")
    with pytest.raises(UsageError, match="--force"):
        export(store, target)
    assert target.read_bytes() == b"old"
    export(store, target, force=True)
    assert target.read_bytes() == b"new"


def test_a_link_keeps_pointing_to_its_file(store: Store, tmp_path: Path) -> None:
    import_bytes(store, b"new")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    export(store, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


@pytest.mark.parametrize("place", ["/dev/null", "/tmp", "nowhere/out"])
def test_no_file_is_put_where_none_belongs(store: Store, tmp_path: Path, place: str) -> None:
    import_bytes(store, b"new")
    with pytest.raises(UsageError, match=r"not a regular file|no folder"):
        export(store, tmp_path / place, force=True)


def test_a_damaged_chunk_leaves_no_file(store: Store, tmp_path: Path) -> None:
    import_bytes(store, os.urandom(20 * CHUNK))
    flip(pack_paths(store)[0], 5 * CHUNK)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CorruptError, match=r"chunk 4 of image 'image' in pack .* 'cachefs verify'"):
        export(store, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


def test_a_missing_pack_is_damage(store: Store, tmp_path: Path) -> None:
    import_bytes(store, os.urandom(20 * CHUNK))
    pack_paths(store)[0].unlink()
    with pytest.raises(CorruptError, match="image 'image' cannot be read"):
        export(store, tmp_path / "out")


def test_a_full_disk_is_named(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_bytes(store, b"new")

    def fail(_fd: int, _size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "ftruncate", fail)
    with pytest.raises(CachefsError, match=re.escape("out: No space left")):
        export(store, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_neighbouring_chunks_are_read_at_once(store: Store) -> None:
    import_bytes(store, os.urandom(20 * CHUNK) + bytes(CHUNK) + os.urandom(CHUNK))
    runs = list(read_chunks(store, "image", newest(store)))
    assert [(run.offset, len(run.plains)) for run in runs] == [(0, 20), (21 * CHUNK, 1)]


def test_a_version_is_found_by_its_number(store: Store) -> None:
    for data in (b"1", b"2"):
        import_bytes(store, data)
    image, _ = store.image("image")
    assert find_version(image, None).number == 2
    assert find_version(image, 1).number == 1
    with pytest.raises(NotFoundError, match="no version 3: there is 1, 2"):
        find_version(image, 3)
