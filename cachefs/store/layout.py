"""Where things lie in a store."""

from __future__ import annotations

from cachefs.model.chunk import ID_BYTES, chunk_id

DESCRIPTION_KEY = "cachefs.json"
PACKS_PREFIX = "packs/"
MANIFESTS_PREFIX = "manifests/"
IMAGES_PREFIX = "images/"
PROFILES_PREFIX = "profiles/"
MODELS_PREFIX = "models/"
FOLDERS = (PACKS_PREFIX, MANIFESTS_PREFIX, IMAGES_PREFIX, PROFILES_PREFIX, MODELS_PREFIX)
"""Made with the store: one that is gone later is an outage, and not a folder without objects."""


def pack_key(pack_id: bytes) -> str:
    """Return the key of a pack; two digits of its id spread the packs over 256 folders."""
    name = pack_id.hex()
    return f"{PACKS_PREFIX}{name[:2]}/{name}"


def pack_id(key: str) -> bytes | None:
    """Return the id of the pack that lies at `key`, or None if no pack belongs there."""
    try:
        found = bytes.fromhex(key.rpartition("/")[2])
    except ValueError:
        return None
    return found if pack_key(found) == key and len(found) == ID_BYTES else None


def manifest_key(manifest_id: str) -> str:
    """Return the key of a manifest."""
    return f"{MANIFESTS_PREFIX}{manifest_id}"


def is_manifest_id(name: str) -> bool:
    """Return whether a manifest can have this name."""
    return len(name) == 2 * ID_BYTES and all(digit in "0123456789abcdef" for digit in name)


def image_key(name: str) -> str:
    """Return the key of an image's record."""
    return f"{IMAGES_PREFIX}{name}.json"


def profile_key(name: str) -> str:
    """Return the key of what hosts have learned of an image."""
    return f"{PROFILES_PREFIX}{chunk_id(name.encode()).hex()}"


def model_key(slot_bytes: int) -> str:
    """Return the key of what hosts have learned of evicting chunks from slots of a size."""
    return f"{MODELS_PREFIX}{slot_bytes}"


def image_name(key: str) -> str:
    """Return the name of the image whose record lies at `key`."""
    return key.removeprefix(IMAGES_PREFIX).removesuffix(".json")
