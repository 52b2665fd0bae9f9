"""Gives an image a new version, or another name, whoever else does the same at that moment."""

from __future__ import annotations

from dataclasses import replace

from cachefs.errors import ConflictError, NotFoundError
from cachefs.model.image import Image, ImageVersion, check_image_name
from cachefs.store.store import Store

_MAX_TRIES = 100
"""A try is lost only to somebody who succeeded, so this many losses in a row are no contention."""


def check_name_is_free(store: Store, name: str) -> None:
    """Check that no image lies above or below `name`: a name is an image or a folder.

    Raises:
        ConflictError: one does.
        UsageError: the name cannot name an image.
    """
    parts = check_image_name(name).split("/")
    for count in range(1, len(parts)):
        folder = "/".join(parts[:count])
        if store.has_image(folder):
            raise ConflictError(
                f"'{folder}' is an image, so '{name}' cannot lie in it: take another name"
            )
    below = next(store.images(name), None)
    if below:
        raise ConflictError(
            f"'{name}' is a folder with images in it ('{below.name}'): take another name"
        )


def publish_version(store: Store, name: str, version: ImageVersion) -> ImageVersion:
    """Make `version` the current one of the image `name`, which may be new; returns it numbered.

    All that it names has to be in the store.

    Raises:
        ConflictError: the name lies above or below another image's.
    """
    for _ in range(_MAX_TRIES):
        try:
            image, etag = store.image(name)
        except NotFoundError:
            check_name_is_free(store, name)
            numbered = replace(version, number=1)
            if _publish_new(store, Image(name, (numbered,))):
                return numbered
            continue
        numbered = replace(version, number=image.current.number + 1)
        try:
            store.publish(image.with_version(numbered), etag)
        except ConflictError:
            continue
        return numbered
    raise ConflictError(f"image '{name}' is changed all the time by others: try again")


def rename_image(store: Store, old: str, new: str) -> None:
    """Give an image another name. For a moment it has both, so that it never has none.

    Raises:
        ConflictError: the new name is taken, or the image got a new version meanwhile.
        NotFoundError: no image of the old name.
    """
    image, etag = store.image(old)
    check_name_is_free(store, new)
    renamed = replace(image, name=new)
    if not _publish_new(store, renamed):
        raise ConflictError(
            f"there is an image '{new}' already: remove it first, or take another name"
        )
    try:
        store.remove_image(old, etag)
    except ConflictError as error:
        store.remove_image(new, store.image(new)[1])
        raise ConflictError(f"image '{old}' got a new version just now: try again") from error


def _publish_new(store: Store, image: Image) -> bool:
    """Publish under a new name; returns whether it was new."""
    try:
        etag = store.publish(image, None)
    except ConflictError:
        return False
    try:
        check_name_is_free(store, image.name)
    except ConflictError:  # somebody took a name above or below since the check before
        store.remove_image(image.name, etag)
        raise
    return True
