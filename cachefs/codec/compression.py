"""A choice of codec, level and least gain, as configuration and command line make it."""

from __future__ import annotations

from dataclasses import dataclass

from cachefs.codec.codecs import codec_of_name
from cachefs.codec.frame import NONE, compressed_frame, plain_frame
from cachefs.errors import UsageError


@dataclass(frozen=True, slots=True)
class Compression:
    """How frames are made.

    `level`: None is the codec's default. `min_ratio`: a chunk that does not shrink to less than
    1/`min_ratio` is stored plain, and costs its readers no decompression.
    """

    codec: str = "zstd"
    level: int | None = None
    min_ratio: float = 1.0

    def check(self) -> None:
        """Raise what is wrong with it.

        Raises:
            UsageError: there is no such codec, or it has no such level.
            FormatError: the codec's library is not installed.
        """
        if self.codec == NONE:
            if self.level is not None:
                raise UsageError("codec 'none' has no levels")
            return
        codec = codec_of_name(self.codec)
        if self.level is not None and self.level not in codec.levels:
            raise UsageError(
                f"codec '{self.codec}' has no level {self.level}: take {codec.levels[0]} to "
                f"{codec.levels[-1]}"
            )

    def encode(self, plain: bytes | memoryview) -> bytes:
        """Return the frame of a chunk."""
        if self.codec == NONE:
            return plain_frame(plain)
        codec = codec_of_name(self.codec)
        level = codec.default_level if self.level is None else self.level
        return compressed_frame(plain, codec, level, self.min_ratio)


def parse_compression(text: str, min_ratio: float = 1.0) -> Compression:
    """Return what `codec` or `codec:level` means, as in `zstd:9`.

    Raises:
        UsageError: there is no such codec, or it has no such level.
        FormatError: the codec's library is not installed.
    """
    name, colon, level = text.partition(":")
    try:
        compression = Compression(name, int(level) if colon else None, min_ratio)
    except ValueError as error:
        raise UsageError(f"'{text}' is no codec: write a name, or a name and a level") from error
    compression.check()
    return compression
