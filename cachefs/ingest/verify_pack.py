"""The check of one pack: its content, its index, each frame, and what images expect of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from cachefs.codec.frame import decode_frame
from cachefs.errors import CorruptError, FormatError, ObjectMissingError
from cachefs.model.chunk import chunk_id
from cachefs.model.manifest import Records
from cachefs.store.layout import pack_key
from cachefs.store.pack import check_header, decode_index
from cachefs.store.store import Store


class Problem(NamedTuple):
    """Something wrong: which object, what, which images (or versions) it hits, what to do."""

    key: str
    what: str
    images: tuple[str, ...]
    advice: str


class Use(NamedTuple):
    """What one version of an image expects of a pack.

    `records`: (n,) RECORD_DTYPE. `plain_bytes`: (n,) uint64, the lengths of their chunks.
    """

    label: str
    records: Records
    plain_bytes: npt.NDArray[np.uint64]


class PackCheck(NamedTuple):
    """The result: how many frames were decoded and hashed, and what is wrong."""

    chunk_count: int
    problems: list[Problem]


class _Expected(NamedTuple):
    """A frame as an index or a manifest describes it."""

    chunk: bytes
    offset: int
    frame_bytes: int
    plain_bytes: int


def check_pack(store: Store, pack: bytes, uses: Sequence[Use]) -> PackCheck:
    """Read a pack back and check all of it.

    Raises:
        StoreUnavailableError: the store does not answer.
    """
    key = pack_key(pack)
    try:
        data, _ = store.objects.get(key)
    except ObjectMissingError:
        if not uses:
            return PackCheck(0, [])  # removed since it was listed
        labels = tuple(sorted(use.label for use in uses))
        return PackCheck(0, [Problem(key, "the pack is missing", labels, _advice(uses, ""))])
    return _Check(pack, data, uses).run()


@dataclass(frozen=True, slots=True)
class _Check:
    pack: bytes
    data: bytes
    uses: Sequence[Use]

    def run(self) -> PackCheck:
        faults = self._whole_faults()
        indexed: set[_Expected] = set()
        try:
            index = decode_index(self.data, self.pack, len(self.data))
            indexed = {_Expected(*row) for row in index.tolist()}
        except (CorruptError, FormatError) as error:
            faults.append(str(error))
        wanted = [(use.label, self._wanted(use)) for use in self.uses]
        frames = indexed.union(*(frames for _, frames in wanted))
        damaged = {frame for frame in frames if not self._is_sound(frame)}
        if indexed and any(frames - indexed for _, frames in wanted):
            faults.append("an image's manifest names frames that its index does not have")
        if damaged:
            faults.append(f"{len(damaged)} of {len(frames)} chunks cannot be read")
        if not faults:
            return PackCheck(len(frames), [])
        hit = tuple(label for label, frames in wanted if frames & damaged)
        problem = Problem(
            pack_key(self.pack),
            "; ".join(faults),
            hit,
            _advice(self.uses, "move the pack away and "),
        )
        return PackCheck(len(frames), [problem])

    def _whole_faults(self) -> list[str]:
        faults = []
        if blake3(self.data).digest() != self.pack:
            faults.append("its content does not match its id")
        try:
            check_header(self.data, self.pack)
        except FormatError as error:
            faults.append(str(error))
        return faults

    def _wanted(self, use: Use) -> set[_Expected]:
        rows = zip(use.records.tolist(), use.plain_bytes.tolist(), strict=True)
        return {
            _Expected(chunk, offset, frame_bytes, plain_bytes)
            for (chunk, _, offset, frame_bytes), plain_bytes in rows
        }

    def _is_sound(self, expected: _Expected) -> bool:
        end = expected.offset + expected.frame_bytes
        try:
            plain = decode_frame(memoryview(self.data)[expected.offset : end], expected.plain_bytes)
        except (CorruptError, FormatError):
            return False
        return end <= len(self.data) and chunk_id(plain) == expected.chunk


def _advice(uses: Sequence[Use], first: str) -> str:
    """Return what to do: everything that uses the pack needs it whole again."""
    if not uses:
        return "no image uses it: remove it"
    names = sorted({use.label.rpartition(" version ")[0] for use in uses})
    return f"{first}import again what uses it: {', '.join(names)}"
