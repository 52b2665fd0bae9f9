"""The files that benches serve, import and read."""

import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.images.disks import MIB, build_ext4
from tests.images.trees import LARGEST_FILE_BYTES, copy_system_tree

DROP_CACHES = Path("/proc/sys/vm/drop_caches")


def build_random_filled_image(image: Path, size_bytes: int) -> Path:
    """Make a disk image with a file system of up to 256 MiB of files, the rest of it random."""
    with tempfile.TemporaryDirectory(dir=image.parent) as tree_name:
        tree = copy_system_tree(Path(tree_name), min(size_bytes // 2, 256 * MIB))
        build_ext4(tree, image, size_bytes)
    chance = random.Random(1)
    with image.open("r+b") as file:
        for offset in range(0, size_bytes, MIB):
            file.seek(offset)
            if not any(file.read(MIB)):
                file.seek(offset)
                file.write(chance.randbytes(min(MIB, size_bytes - offset)))
    return image


def build_dense_image(image: Path, size_bytes: int) -> Path:
    """Make a disk image nearly full of this system's files, so that zeros flatter nobody."""
    with tempfile.TemporaryDirectory(dir=image.parent) as tree_name:
        tree = copy_system_tree(Path(tree_name), int(size_bytes * 0.85))
        return build_ext4(tree, image, size_bytes)


def build_full_image(image: Path, size_bytes: int) -> Path:
    """Make a dense image, and fill what is left of it, MiB by MiB, from this system's large files.

    A system may have fewer small files than a large image has room for. Where the large ones end
    as well, the rest stays zero.
    """
    build_dense_image(image, size_bytes)
    pieces = _large_file_pieces()
    with image.open("r+b") as file:
        for offset in range(0, size_bytes, MIB):
            file.seek(offset)
            if not any(file.read(MIB)):
                file.seek(offset)
                file.write(next(pieces, b""))
    return image


def _large_file_pieces() -> Iterator[bytes]:
    for path in sorted(Path("/usr").rglob("*")):
        if path.is_symlink() or not path.is_file() or path.stat().st_size <= LARGEST_FILE_BYTES:
            continue
        with path.open("rb") as file:
            while len(piece := file.read(MIB)) == MIB:
                yield piece


def build_noise(image: Path, size_bytes: int) -> Path:
    """Make an image of random bytes."""
    chance = random.Random(1)
    with image.open("wb") as file:
        for at in range(0, size_bytes, MIB):
            file.write(chance.randbytes(min(MIB, size_bytes - at)))
    return image


def drop_from_page_cache(*places: Path) -> None:
    """Write out files and drop them from the kernel's page cache; folders with all below them."""
    os.sync()
    if os.geteuid() == 0 and os.access(DROP_CACHES, os.W_OK):
        try:
            DROP_CACHES.write_text("1\n")
        except OSError:
            pass  # some containers show the file and refuse; then file by file
        else:
            return
    for place in places:
        for path in [place] if place.is_file() else place.rglob("*"):
            if path.is_file():
                forget_pages(path)


def forget_pages(path: Path) -> None:
    """Make the kernel drop what its page cache has of one file."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def load_into_page_cache(*places: Path) -> None:
    """Read files once; folders with all below them."""
    for place in places:
        for path in [place] if place.is_file() else sorted(place.rglob("*")):
            if path.is_file():
                with path.open("rb") as file, open(os.devnull, "wb") as nowhere:
                    shutil.copyfileobj(file, nowhere, MIB)


def stored_bytes(folder: Path) -> int:
    """Return the sum of the sizes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
