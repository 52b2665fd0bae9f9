"""Files that look like a guest's memory snapshot."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

PAGE_BYTES = 4096
# Shares as in a guest that was booted and idles: most memory was never touched.
HOLE_SHARE, ZERO_SHARE, REPEATED_SHARE, COUNTER_SHARE = 0.25, 0.25, 0.15, 0.20
# Runs of pages of one kind, on average; physical memory is handed out in runs.
RUN_PAGES = 24
REPEATED_KINDS = 32


def build_memory(image: Path, size_bytes: int, seed: int = 1) -> Path:
    """Write a file of `size_bytes` that looks like the memory of a guest.

    Runs of pages that are holes, zeros, one of a few repeated pages, well compressible (counters)
    or random, in an order and with contents that depend on `seed` alone.

    Args:
        image: The file to write; it is replaced.
        size_bytes: Its size, a multiple of 4 KiB.
        seed: Another seed gives another guest.

    Returns:
        `image`.
    """
    random = np.random.default_rng(seed)
    repeated = random.integers(0, 256, (REPEATED_KINDS, PAGE_BYTES), dtype=np.uint8)
    page_count = size_bytes // PAGE_BYTES
    image.unlink(missing_ok=True)
    with image.open("wb") as file:
        page = 0
        while page < page_count:
            count = min(1 + int(random.exponential(RUN_PAGES)), page_count - page)
            pages = _run_of_pages(random, repeated, page, count)
            if pages is not None:
                file.seek(page * PAGE_BYTES)
                file.write(pages.tobytes())
            page += count
        file.truncate(size_bytes)
    return image


def _run_of_pages(
    random: np.random.Generator, repeated: npt.NDArray[np.uint8], first: int, count: int
) -> npt.NDArray[np.uint8] | None:
    """Return `count` pages of one kind, shape (count, 4096), or None for a hole."""
    kind = random.random()
    if (kind := kind - HOLE_SHARE) < 0:
        return None
    if (kind := kind - ZERO_SHARE) < 0:
        return np.zeros((count, PAGE_BYTES), dtype=np.uint8)
    if (kind := kind - REPEATED_SHARE) < 0:
        return repeated[random.integers(0, REPEATED_KINDS, count)]
    if (kind := kind - COUNTER_SHARE) < 0:
        start = first * (PAGE_BYTES // 8)
        words = np.arange(start, start + count * (PAGE_BYTES // 8), dtype=np.uint64)
        return words.view(np.uint8).reshape(count, PAGE_BYTES)
    return random.integers(0, 256, (count, PAGE_BYTES), dtype=np.uint8)
