"""What an import did, in figures."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(slots=True)
class ImportReport:
    """Counts while an import runs, and its result.

    The image's bytes are zero, duplicate or new: `zero_bytes` includes the holes, `duplicate_bytes`
    were in the store or earlier in the image. `new_stored_bytes` is what the new ones take there.
    """

    name: str
    chunk_bytes: int
    version: int = 0
    manifest: str = ""
    size_bytes: int = 0
    hole_bytes: int = 0
    zero_bytes: int = 0
    duplicate_bytes: int = 0
    new_bytes: int = 0
    new_stored_bytes: int = 0
    stored_bytes: int = 0
    packs_written: int = 0
    duration_s: float = 0.0

    @property
    def done_bytes(self) -> int:
        """How much of the image is dealt with."""
        return self.zero_bytes + self.duplicate_bytes + self.new_bytes

    @property
    def data_bytes(self) -> int:
        """What of the image is not a zero chunk."""
        return self.duplicate_bytes + self.new_bytes

    @property
    def compression_ratio(self) -> float | None:
        """Plain bytes per stored byte of the new chunks; None without new chunks."""
        return self.new_bytes / self.new_stored_bytes if self.new_stored_bytes else None

    @property
    def speed_mb_per_s(self) -> float:
        """Megabytes (10^6) of the image per second, holes and all."""
        return self.size_bytes / 1e6 / self.duration_s if self.duration_s else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return all figures, as `cachefs import --json` prints them."""
        return asdict(self) | {
            "data_bytes": self.data_bytes,
            "compression_ratio": self.compression_ratio,
            "speed_mb_per_s": self.speed_mb_per_s,
        }
