import os
import subprocess
from pathlib import Path

import pytest

from cachefs.errors import CachefsError, NotFoundError, UsageError
from cachefs.ingest.convert import format_hint, open_converted
from cachefs.ingest.importer import ImportOptions, import_image
from cachefs.store.store import Store
from cachefs.units import KIB, MIB
from tests.stores import CHUNK, catalog_folder, exported, new_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return new_store(tmp_path)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.write(os.urandom(300 * KIB))
        file.seek(3 * MIB)
        file.write(os.urandom(100 * KIB))
        file.truncate(8 * MIB)
    return path


def qemu_img(*arguments: str | Path) -> None:
    subprocess.run(["qemu-img", *arguments], check=True, capture_output=True)


def import_converted(store: Store, path: Path) -> int:
    """Import with conversion; returns how much of the image was holes."""
    with open_converted(str(path)) as source:
        options = ImportOptions(catalog_folder(store), CHUNK)
        return import_image(store, source, "image", options).hole_bytes


@pytest.mark.parametrize("form", ["qcow2", "vmdk", "vhdx", "vdi"])
def test_a_disk_image_becomes_the_bytes_that_a_guest_sees(
    store: Store, tmp_path: Path, raw: Path, form: str
) -> None:
    path = tmp_path / f"disk.{form}"
    qemu_img("convert", "-f", "raw", "-O", form, raw, path)
    assert format_hint(str(path)) == form
    hole_bytes = import_converted(store, path)
    assert exported(store, tmp_path) == raw.read_bytes()
    assert hole_bytes > 6 * MIB


def test_raw_is_read_as_it_is(store: Store, tmp_path: Path, raw: Path) -> None:
    assert format_hint(str(raw)) is None
    import_converted(store, raw)
    assert exported(store, tmp_path) == raw.read_bytes()


def test_an_overlay_is_read_with_what_it_is_based_on(
    store: Store, tmp_path: Path, raw: Path
) -> None:
    base, middle, top = (tmp_path / name for name in ("base.qcow2", "middle.qcow2", "top:1.qcow2"))
    qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, base)
    qemu_img("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "base.qcow2", middle)
    qemu_img("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", middle, f"file:{top}")
    import_converted(store, top)
    assert exported(store, tmp_path) == raw.read_bytes()
    base.unlink()
    with pytest.raises(NotFoundError, match=r"middle.qcow2 is based on .*base.qcow2"):
        import_converted(store, top)


def test_nothing_is_left_behind(
    store: Store, tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    path = tmp_path / "disk.qcow2"
    qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, path)
    with open_converted(str(path)):
        assert list(scratch.iterdir()) == []  # not even while it is in use
    os.truncate(path, 1000)
    with pytest.raises(CachefsError, match="qemu-img"):
        import_converted(store, path)
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("form", ["qcow2", "vmdk", "vhdx"])
def test_a_disk_image_that_was_cut_is_refused(
    store: Store, tmp_path: Path, raw: Path, form: str
) -> None:
    """Which qemu-img convert alone would read as zeros."""
    path, top = tmp_path / f"disk.{form}", tmp_path / "top.qcow2"
    qemu_img("convert", "-f", "raw", "-O", form, raw, path)
    qemu_img("create", "-q", "-f", "qcow2", "-F", form, "-b", path, top)
    os.truncate(path, path.stat().st_size - 150_000)
    for damaged in (path, top):
        with pytest.raises(CachefsError, match=r"qemu-img .* failed"):
            import_converted(store, damaged)
    assert not store.has_image("image")


def test_what_is_missing_is_named(
    tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotFoundError, match="no file"), open_converted(str(tmp_path / "nothing")):
        pass
    path = tmp_path / "disk.qcow2"
    qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, path)
    with (
        pytest.raises(UsageError, match="set TMPDIR"),
        open_converted(str(path), tmp_path / "nowhere"),
    ):
        pass
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="qemu-utils"), open_converted(str(path)):
        pass
