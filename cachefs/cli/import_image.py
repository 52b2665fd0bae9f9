"""`cachefs import`."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path

import click

from cachefs.cli.display import print_json, progress, say
from cachefs.cli.options import (
    LabelType,
    SizeType,
    compression_options,
    examples,
    json_option,
    needed_store_option,
)
from cachefs.codec.compression import Compression
from cachefs.errors import NotFoundError, StoreUnavailableError, UsageError
from cachefs.ingest.convert import format_hint, open_converted
from cachefs.ingest.importer import DEFAULT_CHUNK_BYTES, ImportOptions
from cachefs.ingest.importer import import_image as run_import
from cachefs.ingest.publish import check_name_is_free
from cachefs.ingest.report import ImportReport
from cachefs.ingest.source import STANDARD_INPUT, Source, open_source
from cachefs.store.local import LocalObjects
from cachefs.store.store import Store, create_store, open_objects, open_store
from cachefs.units import KIB, format_size


@click.command(
    "import",
    epilog=examples(
        "cachefs import --store /srv/images disk.raw templates/debian-12",
        "cachefs import --label os=debian --convert disk.qcow2 templates/debian-12",
        "zstd -dc disk.raw.zst | cachefs import - templates/debian-12",
    ),
)
@click.argument("source", metavar="FILE")
@click.argument("name", metavar="NAME")
@needed_store_option
@click.option(
    "--chunk-size",
    "chunk_bytes",
    type=SizeType(),
    default=f"{DEFAULT_CHUNK_BYTES // KIB}KiB",
    show_default=True,
    help="Unit of deduplication: a power of two from 4KiB to 4MiB.",
)
@click.option("--label", "labels", type=LabelType(), multiple=True, help="May be repeated.")
@click.option("--convert", is_flag=True, help="Make raw of qcow2, vmdk, vhdx and so on (qemu-img).")
@compression_options
@click.option(
    "--catalog-dir",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="CACHEFS_CATALOG_DIR",
    show_envvar=True,
    help="Where to keep what is known of the store's chunks; may be deleted at any time.",
)
@json_option
def import_image(
    source: str,
    name: str,
    store_url: str,
    chunk_bytes: int,
    labels: tuple[tuple[str, str], ...],
    convert: bool,
    compression: Compression,
    catalog_dir: Path | None,
    as_json: bool,
) -> None:
    """Import a disk image or memory snapshot as the newest version of the image NAME.

    FILE is a file, a block device, or - for standard input. Chunks that are zero or that the store
    has already are not stored. A store in a folder that is empty or not there is made.
    """
    store = _open_or_create(store_url)
    check_name_is_free(store, name)
    options = ImportOptions(
        catalog_dir or default_catalog_folder(store.identity),
        chunk_bytes,
        compression,
        dict(labels),
    )
    with _open(source, convert) as opened, progress(name, not as_json) as show:
        report = run_import(
            store,
            opened,
            name,
            options,
            lambda report: show(report.done_bytes, opened.size_bytes),
        )
    if as_json:
        print_json(report.to_json())
    else:
        click.echo(summary(report))


def default_catalog_folder(identity: str) -> Path:
    """Return the folder for the catalog of a store where none is given."""
    home = os.environ.get("XDG_CACHE_HOME")
    if home:
        base = Path(home)
    else:
        base = Path("/var/cache") if os.geteuid() == 0 else Path.home() / ".cache"
    return base / "cachefs" / identity


def summary(report: ImportReport) -> str:
    """Return what an import did, for people."""
    size_bytes = report.size_bytes or 1
    ratio = report.compression_ratio
    rows = [
        ("size", format_size(report.size_bytes), ""),
        ("zero", *_share(report.zero_bytes, size_bytes)),
        ("  in holes", *_share(report.hole_bytes, size_bytes)),
        ("duplicate", *_share(report.duplicate_bytes, size_bytes)),
        ("new", *_share(report.new_bytes, size_bytes)),
        ("  stored", format_size(report.new_stored_bytes), f"{ratio:.2f}:1" if ratio else ""),
        ("packs written", str(report.packs_written), ""),
    ]
    speed = f"{report.duration_s:.1f} s, {report.speed_mb_per_s:.0f} MB/s"
    lines = [f"{name:<14}{figure:>10}  {note}".rstrip() for name, figure, note in rows]
    return "\n".join([f"{report.name} version {report.version}: {speed}", *lines])


def _share(part_bytes: int, size_bytes: int) -> tuple[str, str]:
    return format_size(part_bytes), f"{part_bytes / size_bytes:.1%}"


def _open(source: str, convert: bool) -> AbstractContextManager[Source]:
    if not convert:
        found = format_hint(source) if source != STANDARD_INPUT else None
        if found:
            say(
                f"{source} looks like {found}: with --convert, which makes it raw, "
                "it would deduplicate better"
            )
        return open_source(source)
    if source == STANDARD_INPUT:
        raise UsageError("--convert needs a file: qemu-img cannot read standard input")
    return open_converted(source)


def _open_or_create(url: str) -> Store:
    try:
        return open_store(url)
    except (NotFoundError, StoreUnavailableError):
        objects = open_objects(url)
        if not (isinstance(objects, LocalObjects) and _is_unused(objects.root)):
            raise
    store = create_store(url)
    say(f"made a store in {store.url}")
    return store


def _is_unused(folder: Path) -> bool:
    try:
        return not any(folder.iterdir())
    except FileNotFoundError:
        return True
    except OSError:
        return False
