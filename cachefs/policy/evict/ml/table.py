"""A table by hash that grows by any number of entries, and forgets by overwriting.

It is a linear hash (Litwin, VLDB'80) with one entry a bucket: when it grows, a new entry is a copy
of the one that its bucket is split from, and so what is known is found at either place. Nothing is
hashed anew, so an entry need not have its key.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def resize(rows: npt.NDArray[Any], count: int) -> None:
    """Make an array longer in place, by zeros: the kernel moves what is large, nobody copies it.

    Nobody may keep a view of it. numpy is not to look for some: a debugger would be taken for one.
    """
    rows.resize(count, refcheck=False)


class Table:
    """`rows`: (entries,) of a dtype."""

    def __init__(self, entries: int, dtype: npt.DTypeLike) -> None:
        self.rows: npt.NDArray[np.void] = np.zeros(entries, dtype)

    def grow(self, entries: int) -> None:
        """Have so many entries, if they are more."""
        known = len(self.rows)
        if entries <= known:
            return
        resize(self.rows, entries)
        while known < entries:
            half = 1 << known.bit_length() - 1
            count = min(entries, 2 * half) - known
            self.rows[known : known + count] = self.rows[known - half : known - half + count]
            known += count

    def at(self, hashes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return where the entries with these hashes are."""
        entries = len(self.rows)
        whole = 1 << (entries - 1).bit_length()
        at = hashes & (whole - 1)
        return np.where(at < entries, at, at - (whole >> 1))
