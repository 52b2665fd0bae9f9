import gzip
import io
import struct
from pathlib import Path

import numpy as np
import pytest
import zstandard

from cachefs.errors import FormatError, NotFoundError, UsageError
from cachefs.simulate.accesses import accesses_of
from cachefs.simulate.readers import read_requests

BLKPARSE = b"""\
  8,0    3        1     0.000000000   697  G   W 223490 + 8 [kjournald]
  8,0    3        2     0.000001829   697  P   R [kjournald]
  8,0    3        3     0.000002197   697  Q   W 128 + 8 [kjournald]
  8,0    1        4     0.000100000     0  Q   R 256 + 256 [qemu]
  8,0    1        5     0.000200000     0  C   R 256 + 256 [0]
  8,0    1        6     0.000300000     0  Q  FN 0 + 0 [qemu]
CPU0 (sda):
 Reads Queued:           1,      128KiB
"""


def npz(**columns: object) -> bytes:
    file = io.BytesIO()
    np.savez(file, **columns)  # type: ignore[arg-type]
    return file.getvalue()


def read(folder: Path, name: str, data: bytes, format_name: str | None = None) -> list[list[int]]:
    (folder / name).write_bytes(data)
    requests = read_requests(folder / name, format_name)
    return [requests.offset_bytes.tolist(), requests.length_bytes.tolist()]


def test_npz(tmp_path: Path) -> None:
    data = npz(offset_bytes=np.array([0, 4096]), length_bytes=np.array([1, 8]), time_us=[0.0, 1.0])
    assert read(tmp_path, "a.npz", data) == [[0, 4096], [1, 8]]


@pytest.mark.parametrize("pack", [lambda data: data, gzip.compress, zstandard.compress])
def test_a_boot_plain_or_packed(tmp_path: Path, pack: object) -> None:
    data = pack(b"1.5 read 0 1\n2 write 8 16\n")  # type: ignore[operator]
    assert read(tmp_path, "boot.txt.gz", data) == [[0, 8 * 512], [512, 16 * 512]]


def test_blkparse_takes_what_was_queued(tmp_path: Path) -> None:
    assert read(tmp_path, "trace", BLKPARSE) == [[128 * 512, 256 * 512], [8 * 512, 256 * 512]]


def test_blkparse_without_queueing_takes_what_was_sent(tmp_path: Path) -> None:
    data = BLKPARSE.replace(b"  Q ", b"  D ")
    assert read(tmp_path, "trace", data)[0] == [128 * 512, 256 * 512]


def test_oracle_general_has_objects_whatever_the_chunk_size(tmp_path: Path) -> None:
    rows = [(1, 2**63 + 5), (1, 7), (2, 2**63 + 5)]
    data = b"".join(struct.pack("<IQIq", time, name, 4096, -1) for time, name in rows)
    path = tmp_path / "disk.oracleGeneral.bin"
    path.write_bytes(data)
    for chunk_bytes in (4096, 65536):
        assert accesses_of(read_requests(path), chunk_bytes).chunks.tolist() == [0, 1, 0]


def test_every_chunk_of_a_request_is_an_access(tmp_path: Path) -> None:
    path = tmp_path / "boot"
    path.write_bytes(b"1 read 127 2\n2 read 0 1\n3 write 128 257\n4 read 9 0\n")
    accesses = accesses_of(read_requests(path), 65536)
    assert accesses.index[accesses.chunks].tolist() == [0, 1, 0, 1, 2, 3]


BROKEN = {
    "cut.npz": npz(offset_bytes=np.arange(9), length_bytes=np.arange(9), time_us=np.zeros(9))[:-60],
    "columns.npz": npz(offset_bytes=np.arange(9), time_us=np.zeros(9)),
    "floats.npz": npz(offset_bytes=np.ones(2), length_bytes=np.ones(2), time_us=np.zeros(2)),
    "pickle.npz": npz(
        offset_bytes=np.array([{}], object), length_bytes=np.arange(1), time_us=np.zeros(1)
    ),
    "negative.npz": npz(
        offset_bytes=np.array([-4]), length_bytes=np.array([1]), time_us=np.zeros(1)
    ),
    "uneven.npz": npz(offset_bytes=np.arange(3), length_bytes=np.arange(2), time_us=np.zeros(3)),
    "boot": b"1 read 0 1\n2 read x 1\n",
    "cut.gz": gzip.compress(b"1 read 0 1\n" * 100)[:20],
    "cut.zst": zstandard.compress(b"1 read 0 1\n" * 100)[:12],
    "x.oracleGeneral": b"23 bytes are not a row.",
    "empty": b"",
    "letter": b"Dear reader,\n",
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_said_so(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(BROKEN[name])
    with pytest.raises(FormatError, match=name):
        read_requests(tmp_path / name)


def test_no_file_and_no_format(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nowhere"):
        read_requests(tmp_path / "nowhere")
    (tmp_path / "boot").write_bytes(b"1 read 0 1\n")
    with pytest.raises(UsageError, match="there are npz, boot"):
        read_requests(tmp_path / "boot", "tape")


def test_a_recording_that_would_fill_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "huge.npz"
    path.write_bytes(
        npz(offset_bytes=np.array([0]), length_bytes=np.array([2**61]), time_us=np.zeros(1))
    )
    with pytest.raises(UsageError, match="larger chunks"):
        accesses_of(read_requests(path), 4096)
