"""`cachefs images` and `cachefs info`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from cachefs.cli.display import print_json, print_table, say
from cachefs.cli.options import examples, json_option, needed_store_option
from cachefs.errors import FormatError, NotFoundError
from cachefs.model.image import Image, ImageVersion
from cachefs.store.store import Store, open_store
from cachefs.units import format_size


@click.command(epilog=examples("cachefs images --store /srv/images"))
@needed_store_option
@json_option
def images(store_url: str, as_json: bool) -> None:
    """List the images of a store, with their current versions.

    SIZE is what a guest sees, DATA what of it is not zero, and STORED what the image's chunks take
    in the store, whether or not other images share them.
    """
    store = open_store(store_url)
    found = _readable_images(store)
    if as_json:
        print_json([{"name": image.name, **asdict(image.current)} for image in found])
        return
    headings = ("NAME", "VERSION>", "SIZE>", "DATA>", "STORED>", "CHUNK>", "CREATED", "LABELS")
    print_table(headings, [_row(image) for image in found])


@click.command(epilog=examples("cachefs info --store /srv/images templates/debian-12"))
@click.argument("name")
@needed_store_option
@json_option
def info(name: str, store_url: str, as_json: bool) -> None:
    """Show the image NAME and all its versions."""
    store = open_store(store_url)
    image, _ = store.image(name)
    versions = [_details(store, version) for version in image.versions]
    if as_json:
        print_json({"name": image.name, "versions": versions})
        return
    click.echo(f"{image.name} in {store.url}")
    for details in versions:
        click.echo()
        for key, value in details.items():
            click.echo(f"{key.removesuffix('_bytes').replace('_', ' '):<10} {_text(key, value)}")


def _readable_images(store: Store) -> list[Image]:
    found = []
    for entry in store.images():
        try:
            found.append(store.image(entry.name)[0])
        except NotFoundError:
            continue  # removed since it was listed
        except FormatError as error:
            say(str(error))
    return found


def _row(image: Image) -> tuple[str, ...]:
    version = image.current
    sizes = (version.size_bytes, version.data_bytes, version.stored_bytes, version.chunk_bytes)
    labels = _labels(version.labels)
    return (
        image.name,
        str(version.number),
        *(format_size(size) for size in sizes),
        version.created,
        labels,
    )


def _details(store: Store, version: ImageVersion) -> dict[str, Any]:
    manifest = store.manifest(version.manifest)
    zero_ratio = 1 - version.data_bytes / version.size_bytes if version.size_bytes else 0.0
    return {
        "version": version.number,
        "created": version.created,
        "size_bytes": version.size_bytes,
        "data_bytes": version.data_bytes,
        "stored_bytes": version.stored_bytes,
        "chunk_bytes": version.chunk_bytes,
        "chunks": manifest.chunk_count,
        "zero_ratio": round(zero_ratio, 4),
        "packs": len(manifest.packs),
        "manifest": version.manifest,
        "labels": version.labels,
    }


def _text(key: str, value: Any) -> str:
    if key == "labels":
        return _labels(value)
    return format_size(value) if key.endswith("_bytes") else str(value)


def _labels(labels: dict[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(labels.items()))
