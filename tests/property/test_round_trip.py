"""Any image: imported and exported it is the same, and the figures add up."""

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from cachefs.ingest.verify import verify_store
from cachefs.model.chunk import chunk_id
from tests.stores import CHUNK, exported, import_file, new_store

# A piece of an image: what it holds, and how long it is in bytes, around the borders of chunks.
LENGTHS = st.builds(
    lambda chunks, more: max(0, chunks * CHUNK + more), st.integers(0, 20), st.integers(-2, 2)
)
PIECES = st.tuples(st.sampled_from(["hole", "zero", "same", "text", "noise"]), LENGTHS)


def write_image(path: Path, pieces: list[tuple[str, int]], seed: int) -> bytes:
    with path.open("wb") as file:
        at = 0
        for number, (kind, length) in enumerate(pieces):
            file.seek(at)
            if kind == "zero":
                file.write(bytes(length))
            elif kind == "same":
                file.write((b"\x5a" * CHUNK * 21)[:length])
            elif kind == "text":
                file.write((b"line %d\n" % number * length)[:length])
            elif kind == "noise":
                unit = chunk_id(b"%d %d" % (seed, number))
                noise = (chunk_id(unit + b"%d" % block) for block in range(length // 32 + 1))
                file.write(b"".join(noise)[:length])
            at += length
        file.truncate(at)
    return path.read_bytes()


def expected_figures(data: bytes, known: set[bytes]) -> tuple[int, int, int]:
    """Zero, duplicate and new bytes, the slow way; adds what is new to `known`."""
    zero = duplicate = new = 0
    for at in range(0, len(data), CHUNK):
        chunk = data[at : at + CHUNK]
        if not any(chunk):
            zero += len(chunk)
        elif chunk in known:
            duplicate += len(chunk)
        else:
            known.add(chunk)
            new += len(chunk)
    return zero, duplicate, new


@settings(max_examples=60)
@given(
    images=st.lists(st.lists(PIECES, max_size=8), min_size=1, max_size=3),
    seed=st.integers(0, 2),
)
def test_images_come_out_as_they_went_in(images: list[list[tuple[str, int]]], seed: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = new_store(folder)
        known: set[bytes] = set()
        for number, pieces in enumerate(images):
            data = write_image(folder / "disk.img", pieces, seed)
            report = import_file(store, folder / "disk.img", f"image{number}")
            figures = (report.zero_bytes, report.duplicate_bytes, report.new_bytes)
            assert figures == expected_figures(data, known)
            assert report.size_bytes == report.done_bytes == len(data)
            assert report.hole_bytes <= report.zero_bytes
            assert exported(store, folder, f"image{number}") == data
        checked = verify_store(store)
        assert checked.problems == []
        assert checked.chunk_count == len(known)
