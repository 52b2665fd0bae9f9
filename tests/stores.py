"""Stores with images in them, made in a few milliseconds."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from cachefs.ingest.export import export_to_file
from cachefs.ingest.importer import ImportOptions, import_image
from cachefs.ingest.report import ImportReport
from cachefs.ingest.source import FileSource, open_source
from cachefs.store.store import Store, create_store, open_store

_catalogs = tempfile.TemporaryDirectory(prefix="catalogs-")
CHUNK = 4096
COMMAND_WAIT_S = 100


def new_store(folder: Path) -> Store:
    """Make a store in `folder/store`."""
    return create_store(str(folder / "store"))


def open_again(store: Store) -> Store:
    return open_store(store.url)


def catalog_folder(store: Store) -> Path:
    """Where imports of these tests keep the catalog: beside the store, or for S3 until the end."""
    if store.url.startswith("s3://"):
        return Path(_catalogs.name) / store.identity
    return Path(f"{store.url.removeprefix('file://')}.catalog")


def import_bytes(
    store: Store,
    data: bytes,
    name: str = "image",
    chunk_bytes: int = CHUNK,
    labels: Mapping[str, str] | None = None,
) -> ImportReport:
    """Import bytes as an image, through a file without a name."""
    fd = os.memfd_create("image")
    try:
        os.write(fd, data)
        options = ImportOptions(catalog_folder(store), chunk_bytes, labels=labels or {})
        return import_image(store, FileSource(fd, "memory"), name, options)
    finally:
        os.close(fd)


def import_file(
    store: Store, path: Path, name: str = "image", chunk_bytes: int = CHUNK
) -> ImportReport:
    with open_source(str(path)) as source:
        options = ImportOptions(catalog_folder(store), chunk_bytes)
        return import_image(store, source, name, options)


def exported(store: Store, folder: Path, name: str = "image") -> bytes:
    """Return what an export of the image's newest version gives."""
    manifest = store.manifest(store.image(name)[0].current.manifest)
    target = folder / "exported"
    export_to_file(store, name, manifest, str(target), True, lambda _: None)
    return target.read_bytes()


def pack_paths(store: Store) -> list[Path]:
    root = Path(store.url.removeprefix("file://"))
    return sorted(path for path in (root / "packs").rglob("[!.]*") if path.is_file())


def flip(path: Path, offset: int, bit: int = 0) -> None:
    """Flip one bit of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1 << bit]))


def command(
    *arguments: str | Path,
    given: bytes = b"",
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Run the real command line; standard input is no terminal."""
    return subprocess.run(
        command_line(*arguments),
        input=given,
        capture_output=True,
        timeout=COMMAND_WAIT_S,
        check=False,
        env={**os.environ, **(environment or {})},
    )


def command_line(*arguments: str | Path) -> Sequence[str]:
    return [sys.executable, "-m", "cachefs", *(str(argument) for argument in arguments)]
