"""Sizes as people write them, and back."""

from __future__ import annotations

import re

from cachefs.errors import UsageError

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB

_FACTORS = {
    "": 1,
    "b": 1,
    "k": KIB,
    "kib": KIB,
    "m": MIB,
    "mib": MIB,
    "g": GIB,
    "gib": GIB,
    "t": TIB,
    "tib": TIB,
    "kb": 1000,
    "mb": 1000**2,
    "gb": 1000**3,
    "tb": 1000**4,
}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def parse_size(text: str) -> int:
    """Return the bytes that a text such as `64KiB`, `1.5G`, `10GB` or `4096` means.

    Raises:
        UsageError: the text is no size.
    """
    match = _SIZE.fullmatch(text)
    factor = _FACTORS.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise UsageError(
            f"'{text}' is not a size: write a number and KiB, MiB, GiB or TiB, as in 64KiB"
        )
    return int(float(match[1]) * factor) if "." in match[1] else int(match[1]) * factor


def format_size(size_bytes: float) -> str:
    """Return a size for people, in binary units with at most one decimal: `1.5 GiB`, `512 B`."""
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if value == int(value) else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
