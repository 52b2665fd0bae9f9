"""Bytes of images: every kind of block and every odd end, and always the same."""

import random
from pathlib import Path

from cachefs.store.store import Store
from tests.stores import import_bytes

KIB, MIB = 1024, 1024 * 1024
CHUNKS = (4 * KIB, 64 * KIB, MIB)


def noise(size_bytes: int, seed: int = 1) -> bytes:
    """Bytes that no codec makes smaller."""
    return random.Random(seed).randbytes(size_bytes)


def mixture(size_bytes: int, seed: int = 1) -> bytes:
    """Runs of blocks that shrink, that do not, that repeat and that are zero."""
    choice = random.Random(seed)
    parts: list[bytes] = []
    left = size_bytes
    while left > 0:
        length = min(left, choice.randrange(1, 40) * 2048)
        match choice.randrange(4):
            case 0:
                part = bytes(length)
            case 1:
                part = (b"%d lines of text\n" % choice.randrange(10**6) * (length // 8))[:length]
            case 2:
                part = (bytes(range(256)) * (length // 256 + 1))[:length]
            case _:
                part = choice.randbytes(length)
        parts.append(part)
        left -= length
    return b"".join(parts)


def sparse(size_bytes: int, seed: int = 1) -> bytes:
    """Mostly nothing: some islands, one of them at the very end."""
    choice = random.Random(seed)
    data = bytearray(size_bytes)
    for at in [*(choice.randrange(size_bytes - 9000) for _ in range(6)), size_bytes - 3]:
        island = choice.randbytes(min(choice.randrange(1, 9000), size_bytes - at))
        data[at : at + len(island)] = island
    return bytes(data)


def import_samples(store: Store, chunk_bytes: int) -> dict[str, bytes]:
    """Import one image of each kind; returns their bytes by name."""
    folder = f"{chunk_bytes // KIB}k"
    samples = {
        f"{folder}/empty": b"",
        f"{folder}/byte": b"\x07",
        f"{folder}/page": noise(4096, 2),
        f"{folder}/chunk": noise(chunk_bytes, 3),
        f"{folder}/over": noise(chunk_bytes + 1, 4),
        f"{folder}/under": noise(2 * chunk_bytes - 1, 5),
        f"{folder}/zero": bytes(3 * chunk_bytes + 5),
        f"{folder}/mixture": mixture(4 * MIB + 777, chunk_bytes),
        f"{folder}/sparse": sparse(6 * MIB + 1, chunk_bytes),
    }
    for name, data in samples.items():
        import_bytes(store, data, name, chunk_bytes)
    return samples


def store_path(store: Store) -> Path:
    return Path(store.url.removeprefix("file://"))
