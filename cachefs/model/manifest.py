"""Manifests: the immutable table of an image, and its form as an object in the store.

    magic "CACHEFSM" | format u32 | header length u32 | header JSON | zstd(runs | packs | records)

Only chunks that hold data have a record; `runs` says which chunk indexes they are. So a sparse
image of terabytes has a small manifest. The object's name is the BLAKE3 of all its bytes.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import zstandard
from blake3 import blake3

from cachefs.errors import CorruptError, FormatError, UsageError
from cachefs.model.chunk import ID_BYTES, check_chunk_bytes

MANIFEST_FORMAT = 1
_MAGIC = b"CACHEFSM"
_PREFIX = struct.Struct("<8sII")
_MAX_TABLE_BYTES = 1 << 34
"""A table over 16 GiB (an image of about 24 TiB of data in 64 KiB chunks) is refused unread."""

RECORD_DTYPE = np.dtype(
    [("id", f"V{ID_BYTES}"), ("pack", "<u4"), ("offset", "<u4"), ("frame_bytes", "<u4")]
)
"""One data chunk: its id, and the index of its pack, offset and length of its frame there."""

RUN_DTYPE = np.dtype([("first", "<u8"), ("count", "<u8")])
"""Neighbouring chunks that hold data: index of the first, and how many."""

Records = npt.NDArray[np.void]
Runs = npt.NDArray[np.void]


@dataclass(frozen=True, slots=True, eq=False)
class Manifest:
    """The table of one image version.

    `runs`: (r,) RUN_DTYPE, ascending, not touching. `packs`: ids of 32 bytes.
    `records`: (n,) RECORD_DTYPE, the chunks of the runs in order.
    """

    size_bytes: int
    chunk_bytes: int
    runs: Runs
    packs: tuple[bytes, ...]
    records: Records

    @property
    def chunk_count(self) -> int:
        """Chunks of the image, zero chunks included."""
        return -(-self.size_bytes // self.chunk_bytes)

    def indexes(self) -> npt.NDArray[np.uint64]:
        """Return the chunk index of each record: (n,) uint64, ascending."""
        firsts, counts = self.runs["first"], self.runs["count"]
        starts = np.cumsum(counts) - counts
        steps = np.repeat(firsts - starts, counts.astype(np.int64))
        return steps + np.arange(len(self.records), dtype=np.uint64)

    def plain_bytes(self, index: int) -> int:
        """Return the length of the chunk at `index`: the last one may be shorter."""
        return min(self.chunk_bytes, self.size_bytes - index * self.chunk_bytes)


def runs_of(indexes: npt.NDArray[np.uint64]) -> Runs:
    """Return the runs, (r,) RUN_DTYPE, of ascending chunk indexes, (n,) uint64."""
    runs = np.zeros(0, RUN_DTYPE)
    if len(indexes):
        breaks = np.flatnonzero(np.diff(indexes) != 1) + 1
        edges = np.concatenate(([0], breaks, [len(indexes)]))
        runs = np.zeros(len(edges) - 1, RUN_DTYPE)
        runs["first"] = indexes[edges[:-1]]
        runs["count"] = np.diff(edges)
    return runs


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the manifest as an object of the store."""
    # Views: a large table is not copied.
    runs, records = (table.view(np.uint8).data for table in (manifest.runs, manifest.records))
    tables = (runs, memoryview(b"".join(manifest.packs)), records)
    size_bytes = sum(len(table) for table in tables)
    compressor = zstandard.ZstdCompressor(level=3).compressobj(size=size_bytes)
    payload = [compressor.compress(table) for table in tables]
    header = json.dumps(
        {
            "size_bytes": manifest.size_bytes,
            "chunk_bytes": manifest.chunk_bytes,
            "runs": len(manifest.runs),
            "packs": len(manifest.packs),
            "records": len(manifest.records),
        }
    ).encode()
    prefix = _PREFIX.pack(_MAGIC, MANIFEST_FORMAT, len(header))
    return b"".join((prefix, header, *payload, compressor.flush()))


def decode_manifest(data: bytes, manifest_id: str) -> Manifest:
    """Return the manifest that `data` holds, checked against its id and for consistency.

    Raises:
        FormatError: not a manifest, or one of a later format.
        CorruptError: the bytes are not those that `manifest_id` names.
    """
    if len(data) < _PREFIX.size or data[:8] != _MAGIC:
        raise FormatError(
            f"manifest {manifest_id[:16]} is a foreign file: it does not start as one"
        )
    _, number, header_bytes = _PREFIX.unpack_from(data)
    if number != MANIFEST_FORMAT:
        raise FormatError(
            f"manifest {manifest_id[:16]} has format {number}, "
            f"this cachefs knows {MANIFEST_FORMAT}: use a newer cachefs"
        )
    if blake3(data).hexdigest() != manifest_id:
        raise CorruptError(
            f"manifest {manifest_id[:16]} is corrupt: its content does not match its id"
        )
    try:
        return _decode_table(data, _PREFIX.size, header_bytes)
    except (ValueError, KeyError, TypeError, zstandard.ZstdError, UsageError) as error:
        raise FormatError(f"manifest {manifest_id[:16]} cannot be understood: {error}") from error


def _decode_table(data: bytes, header_at: int, header_bytes: int) -> Manifest:
    header = json.loads(data[header_at : header_at + header_bytes])
    runs, packs, records = (int(header[key]) for key in ("runs", "packs", "records"))
    expected_bytes = runs * RUN_DTYPE.itemsize + packs * ID_BYTES + records * RECORD_DTYPE.itemsize
    payload = memoryview(data)[header_at + header_bytes :]
    if min(runs, packs, records) < 0 or expected_bytes > _MAX_TABLE_BYTES:
        raise ValueError("table too large")
    if zstandard.get_frame_parameters(payload).content_size != expected_bytes:
        raise ValueError("table of another size than the header says")
    table = zstandard.ZstdDecompressor().decompress(payload) if expected_bytes else b""
    packs_at = runs * RUN_DTYPE.itemsize
    records_at = packs_at + packs * ID_BYTES
    manifest = Manifest(
        size_bytes=int(header["size_bytes"]),
        chunk_bytes=check_chunk_bytes(int(header["chunk_bytes"])),
        runs=np.frombuffer(table, RUN_DTYPE, runs),
        packs=tuple(table[at : at + ID_BYTES] for at in range(packs_at, records_at, ID_BYTES)),
        records=np.frombuffer(table, RECORD_DTYPE, records, records_at),
    )
    _check(manifest)
    return manifest


def _check(manifest: Manifest) -> None:
    firsts, counts = manifest.runs["first"], manifest.runs["count"]
    if manifest.size_bytes < 0:
        raise ValueError("the image has a negative size")
    if len(firsts) and int(max(firsts.max(), counts.max())) > manifest.chunk_count:
        raise ValueError("runs leave the image")  # checked first: sums of larger ones overflow
    if int(counts.sum()) != len(manifest.records) or not bool(np.all(counts > 0)):
        raise ValueError("runs and records disagree")
    if len(firsts):
        ends = firsts + counts
        if not bool(np.all(firsts[1:] > ends[:-1])) or int(ends[-1]) > manifest.chunk_count:
            raise ValueError("runs overlap or leave the image")
        if int(manifest.records["pack"].max()) >= len(manifest.packs):
            raise ValueError("a record names a pack that is not listed")
        if not bool(np.all(manifest.records["frame_bytes"] > 0)):
            raise ValueError("a record has no frame")
