import os
import subprocess
from pathlib import Path

import pytest

from cachefs.errors import ConflictError, NotFoundError, UsageError
from cachefs.ingest.source import BATCH_BYTES, FileSource, Source, StreamSource, open_source

CHUNK = 4096


def read_back(source: Source, size_bytes: int, chunk_bytes: int = CHUNK) -> tuple[bytes, int]:
    """Put the batches together; returns the image and how much of it was skipped as holes."""
    image, hole_bytes = bytearray(size_bytes), 0
    last = -1
    for batch in source.batches(chunk_bytes, lambda: memoryview(bytearray(b"x" * BATCH_BYTES))):
        hole_bytes += batch.hole_bytes
        for position, index in enumerate(batch.indexes.tolist()):
            assert index > last
            last = index
            begin = position * chunk_bytes
            plain = batch.buffer[begin : min(begin + chunk_bytes, batch.size_bytes)]
            image[index * chunk_bytes : index * chunk_bytes + len(plain)] = plain
        whole_bytes = len(batch.indexes) * chunk_bytes
        assert not any(batch.buffer[batch.size_bytes : whole_bytes])
    assert len(image) == size_bytes
    return bytes(image), hole_bytes


@pytest.mark.parametrize(
    "size_bytes", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, BATCH_BYTES, BATCH_BYTES + 1, 9_000_000]
)
def test_a_file_and_a_stream_give_their_bytes(tmp_path: Path, size_bytes: int) -> None:
    data = os.urandom(size_bytes)
    path = tmp_path / "disk.img"
    path.write_bytes(data)
    with open_source(str(path)) as source:
        assert source.size_bytes == size_bytes
        assert read_back(source, size_bytes) == (data, 0)
    with path.open("rb") as file:
        stream = StreamSource(file.fileno(), "stream")
        assert stream.size_bytes is None
        assert read_back(stream, size_bytes) == (data, 0)
        assert stream.size_bytes == size_bytes


def test_a_pipe_that_trickles_gives_its_bytes() -> None:
    data = os.urandom(3 * CHUNK + 5)
    script = "import os\nfor byte in open(0, 'rb').read(): os.write(1, bytes([byte]))"
    with subprocess.Popen(
        ["python3", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(data)
        process.stdin.close()
        assert read_back(StreamSource(process.stdout.fileno(), "pipe"), len(data))[0] == data


def test_holes_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "sparse.img"
    size_bytes = 1000 * CHUNK + 17
    with path.open("wb") as file:
        for index in (3, 4, 500, 999):
            file.seek(index * CHUNK)
            file.write(b"d" * CHUNK)
        file.truncate(size_bytes)
    with open_source(str(path)) as source:
        image, hole_bytes = read_back(source, size_bytes)
    assert image == path.read_bytes()
    assert hole_bytes == size_bytes - 4 * CHUNK


def test_data_that_is_smaller_than_a_chunk_is_read_with_what_is_around_it(tmp_path: Path) -> None:
    path = tmp_path / "sparse.img"
    with path.open("wb") as file:
        for page in (1, 2, 31, 33):  # two of them in one chunk of 64 KiB, one in each of the next
            file.seek(page * 4096)
            file.write(b"d" * 4096)
        file.truncate(100 * 65536)
    with open_source(str(path)) as source:
        image, hole_bytes = read_back(source, 100 * 65536, 65536)
    assert image == path.read_bytes()
    assert hole_bytes == 97 * 65536


def test_a_file_of_nothing_but_a_hole_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "hole.img"
    path.touch()
    os.truncate(path, 10**12)
    with open_source(str(path)) as source:
        batches = list(source.batches(CHUNK, lambda: memoryview(bytearray(BATCH_BYTES))))
    assert sum(batch.hole_bytes for batch in batches) == 10**12
    assert sum(len(batch.indexes) for batch in batches) == 0


@pytest.mark.parametrize("size_bytes", [5 * CHUNK, 5 * BATCH_BYTES])
@pytest.mark.parametrize("change_bytes", [-CHUNK, -1, 1, CHUNK])
def test_a_file_that_changes_its_size_is_refused(
    tmp_path: Path, size_bytes: int, change_bytes: int
) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(b"d" * size_bytes)
    with open_source(str(path)) as source:
        os.truncate(path, size_bytes + change_bytes)
        with pytest.raises(ConflictError, match=r"disk.img had .* nobody writes"):
            read_back(source, size_bytes)


def test_a_file_that_is_written_to_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(b"d" * CHUNK)
    with open_source(str(path)) as source:
        os.utime(path, ns=(1, 1))
        read_back(source, CHUNK)
    assert "written to while it was read" in caplog.text


def test_what_cannot_be_imported_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no file"), open_source(str(tmp_path / "nothing")):
        pass
    with pytest.raises(UsageError, match="folder"), open_source(str(tmp_path)):
        pass


def test_a_named_pipe_is_a_stream(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with (
        subprocess.Popen(["sh", "-c", f"printf hello > {path}"]),
        open_source(str(path)) as source,
    ):
        assert read_back(source, 5)[0] == b"hello"


def test_a_block_device_gives_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(64 * CHUNK))
    made = subprocess.run(
        ["losetup", "--find", "--show", "--read-only", path],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        pytest.skip(f"no loop device here: {made.stderr.strip()}")
    device = made.stdout.strip()
    try:
        with open_source(device) as source:
            assert isinstance(source, FileSource)
            assert source.size_bytes == 64 * CHUNK
            assert read_back(source, 64 * CHUNK)[0] == path.read_bytes()
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
