"""Readers of recordings. Each format is one entry of `FORMATS`; a new one is one more.

A recording is somebody's file: whatever is in it, reading ends with requests or with an error.
"""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import zstandard

from cachefs.errors import FormatError, NotFoundError, UsageError
from cachefs.simulate.accesses import Requests

_SECTOR_BYTES = 512
_HEAD_BYTES = 4096
_ORACLE_ROW = np.dtype([("time", "<u4"), ("id", "<u8"), ("size", "<u4"), ("next", "<i8")])
_BOOT_LINE = re.compile(rb"^(\d+(?:\.\d+)?) (?:read|write) (\d+) (\d+)$")
_BLKPARSE_LINE = re.compile(
    rb"(?m)^\s*\d+,\d+\s+\d+\s+\d+\s+(\d+\.\d+)\s+\d+\s+([A-Z]+)\s+([A-Z]+)\s+(\d+) \+ (\d+)"
)


@dataclass(frozen=True, slots=True)
class Format:
    """A format of recordings. `fits` looks at the name and the first bytes, unpacked."""

    name: str
    fits: Callable[[str, bytes], bool]
    read: Callable[[str, bytes], Requests]


def read_requests(path: Path, format_name: str | None = None) -> Requests:
    """Return the requests of a recording; gzip and zstd are unpacked.

    Raises:
        NotFoundError: there is no such file.
        FormatError: it is damaged, empty, or of no format that is known.
        UsageError: `format_name` is none of FORMATS.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise NotFoundError(f"cannot read the recording {path}: {error.strerror}") from error
    data = _unpacked(path, data)
    name = path.name.removesuffix(".gz").removesuffix(".zst")
    chosen = _format(path, name, data, format_name)
    try:
        requests = chosen.read(path.name.partition(".")[0], data)
    except Exception as error:  # of numpy, zipfile, zlib, tokenize: whoever stumbles first
        raise FormatError(f"{path} is no sound {chosen.name} recording: {error}") from error
    _check(path, requests)
    return requests


def _unpacked(path: Path, data: bytes) -> bytes:
    try:
        if data.startswith(b"\x1f\x8b"):
            return gzip.decompress(data)
        if data.startswith(b"\x28\xb5\x2f\xfd"):
            return zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data)).read()
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise FormatError(f"{path} is damaged: {error}") from error
    return data


def _format(path: Path, name: str, data: bytes, format_name: str | None) -> Format:
    if format_name is not None:
        if format_name not in FORMATS:
            raise UsageError(f"no format '{format_name}': there are {', '.join(FORMATS)}")
        return FORMATS[format_name]
    for candidate in FORMATS.values():
        if candidate.fits(name, data[:_HEAD_BYTES]):
            return candidate
    raise FormatError(f"{path} is of no format that is known: name one of {', '.join(FORMATS)}")


def _check(path: Path, requests: Requests) -> None:
    if not len(requests):
        raise FormatError(f"{path} has no requests")
    offset, length = requests.offset_bytes, requests.length_bytes
    if (
        len(offset) != len(length)
        or (length < 0).any()
        or (not requests.are_objects and (offset < 0).any())
        or length.sum(dtype=np.float64) > 2.0**62
    ):
        raise FormatError(f"{path} has requests that cannot be")


def _read_npz(name: str, data: bytes) -> Requests:
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        offset, length = (_column(file[part]) for part in ("offset_bytes", "length_bytes"))
        time_us = np.asarray(file["time_us"], np.float64)
    return Requests(name, offset, length, time_us)


def _column(values: npt.NDArray[np.generic]) -> npt.NDArray[np.int64]:
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise ValueError("a column that is not of whole numbers")
    return values.astype(np.int64)


def _read_boot(name: str, data: bytes) -> Requests:
    rows = [_BOOT_LINE.match(line) for line in data.splitlines()]
    if not all(rows):
        raise ValueError(f"line {rows.index(None) + 1} is not 'time read|write sector sectors'")
    return _of_sectors(name, ((float(r[1]), int(r[2]), int(r[3])) for r in rows if r))


def _read_blkparse(name: str, data: bytes) -> Requests:
    """What was queued; in a recording without that, what was sent to the device."""
    rows = [row for line in data.splitlines() if (row := _BLKPARSE_LINE.match(line))]
    wanted = b"Q" if any(row[2] == b"Q" for row in rows) else b"D"
    moving = [row for row in rows if row[2] == wanted and set(row[3]) & set(b"RW")]
    return _of_sectors(name, ((float(r[1]), int(r[4]), int(r[5])) for r in moving))


def _of_sectors(name: str, rows: Iterable[tuple[float, int, int]]) -> Requests:
    table = np.array(list(rows), np.float64).reshape(-1, 3)
    sectors = table[:, 1:].astype(np.int64) * _SECTOR_BYTES
    return Requests(name, sectors[:, 0], sectors[:, 1], table[:, 0] * 1e6)


def _read_oracle(name: str, data: bytes) -> Requests:
    """Objects with numbers, from libCacheSim, which are chunks of any chunk size."""
    if len(data) % _ORACLE_ROW.itemsize:
        raise ValueError("it ends within a row")
    rows = np.frombuffer(data, _ORACLE_ROW)
    return Requests(
        name,
        rows["id"].astype(np.int64),
        np.ones(len(rows), np.int64),
        rows["time"].astype(np.float64) * 1e6,
        are_objects=True,
    )


FORMATS = {
    each.name: each
    for each in (
        Format("npz", lambda _, head: head.startswith(b"PK"), _read_npz),
        Format("boot", lambda _, head: bool(_BOOT_LINE.match(_line(head))), _read_boot),
        Format("blkparse", lambda _, head: bool(_BLKPARSE_LINE.search(head)), _read_blkparse),
        Format("oracleGeneral", lambda name, _: "oracleGeneral" in name, _read_oracle),
    )
}
"""By name, in the order in which they are tried."""


def _line(head: bytes) -> bytes:
    return head.partition(b"\n")[0].rstrip(b"\r")
