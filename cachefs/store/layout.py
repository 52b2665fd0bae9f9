"""Where things lie in a store."""

from __future__ import annotations

DESCRIPTION_KEY = "cachefs.json"
PACKS_PREFIX = "packs/"
MANIFESTS_PREFIX = "manifests/"
IMAGES_PREFIX = "images/"


def pack_key(pack_id: bytes) -> str:
    """Return the key of a pack; two digits of its id spread the packs over 256 folders."""
    name = pack_id.hex()
    return f"{PACKS_PREFIX}{name[:2]}/{name}"


def manifest_key(manifest_id: str) -> str:
    """Return the key of a manifest."""
    return f"{MANIFESTS_PREFIX}{manifest_id}"


def image_key(name: str) -> str:
    """Return the key of an image's record."""
    return f"{IMAGES_PREFIX}{name}.json"


def image_name(key: str) -> str:
    """Return the name of the image whose record lies at `key`."""
    return key.removeprefix(IMAGES_PREFIX).removesuffix(".json")
