"""Mapped memory: how qemu and Firecracker read a snapshot of a guest's memory."""

import mmap
import os
import random
from pathlib import Path

import pytest

from tests.e2e.conftest import Mounted

pytestmark = [pytest.mark.e2e, pytest.mark.mount]

PAGE_BYTES = 4096


def map_file(path: Path, open_flags: int, map_flags: int, protection: int) -> mmap.mmap:
    fd = os.open(path, open_flags)
    try:
        return mmap.mmap(fd, 0, flags=map_flags, prot=protection)
    finally:
        os.close(fd)


def test_shared_map_shows_the_image(mounted: Mounted) -> None:
    source = mounted.sources["memory"].read_bytes()

    with map_file(mounted["memory"], os.O_RDONLY, mmap.MAP_SHARED, mmap.PROT_READ) as mapped:
        pages = list(range(0, len(source), PAGE_BYTES))
        random.Random(1).shuffle(pages)
        wrong = [
            page
            for page in pages
            if mapped[page : page + PAGE_BYTES] != source[page : page + PAGE_BYTES]
        ]
        assert wrong == []
        assert len(mapped) == len(source)


@pytest.mark.parametrize("open_flags", [os.O_RDONLY, os.O_RDWR], ids=["O_RDONLY", "O_RDWR"])
def test_private_map_takes_writes_and_the_image_does_not(mounted: Mounted, open_flags: int) -> None:
    source = mounted.sources["memory"].read_bytes()
    place = 40 * PAGE_BYTES + 7

    protection = mmap.PROT_READ | mmap.PROT_WRITE
    with map_file(mounted["memory"], open_flags, mmap.MAP_PRIVATE, protection) as mapped:
        mapped[place : place + 5] = b"guest"
        assert mapped[place - 100 : place] == source[place - 100 : place]
        assert mapped[place : place + 5] == b"guest"
        assert mapped[place + 5 : place + 9000] == source[place + 5 : place + 9000]

    assert mounted["memory"].read_bytes() == source
