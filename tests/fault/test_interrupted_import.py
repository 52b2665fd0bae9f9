"""Imports that are killed, interrupted, or run at once: nothing half-visible, nothing lost."""

import os
import random
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cachefs.ingest.verify import verify_store
from cachefs.store.store import Store, open_store
from cachefs.units import MIB
from tests.stores import catalog_folder, command_line, exported, new_store, pack_paths

IMAGE_BYTES = 96 * MIB
KILLS = 6


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """An image of half noise, half repetitions of it."""
    path = tmp_path / "disk.img"
    noise = os.urandom(IMAGE_BYTES // 2)
    path.write_bytes(noise + noise)
    return path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return new_store(tmp_path)


def start_import(store: Store, source: Path | str, name: str = "image") -> subprocess.Popen[bytes]:
    options = ("--store", store.url, "--catalog-dir", str(catalog_folder(store)))
    return subprocess.Popen(
        command_line("import", *options, "--chunk-size", "16KiB", source, name),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def feed_and_signal(process: subprocess.Popen[bytes], data: bytes, number: int) -> bytes:
    """Give an import part of its input, and then a signal; returns what it says on stderr."""
    assert process.stdin
    process.stdin.write(data)
    process.stdin.flush()
    process.send_signal(number)
    _, said = process.communicate()
    return said


@pytest.mark.parametrize("seed", range(3))
def test_a_killed_import_leaves_nothing_half_visible(
    store: Store, source: Path, tmp_path: Path, seed: int
) -> None:
    data = source.read_bytes()
    chance = random.Random(seed)
    for _ in range(KILLS):
        process = start_import(store, "-")
        # A pipe holds 64 KiB, so the import has read all but that when the write returns.
        feed_and_signal(process, data[: chance.randrange(len(data))], signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        assert not store.has_image("image")
        assert verify_store(store).problems == []
    process = start_import(store, source)
    _, error = process.communicate()
    assert process.returncode == 0, error
    assert exported(store, tmp_path) == data
    assert verify_store(store).problems == []


def test_the_next_import_takes_up_the_packs_of_a_killed_one(store: Store, source: Path) -> None:
    data = source.read_bytes()
    process = start_import(store, "-")
    stored = threading.Event()
    watcher = threading.Thread(target=_set_when, args=(lambda: len(pack_paths(store)) >= 1, stored))
    watcher.start()
    assert process.stdin
    process.stdin.write(data[: 40 * MIB])
    process.stdin.flush()
    assert stored.wait(60)
    process.kill()
    process.communicate()
    watcher.join()
    before = sum(path.stat().st_size for path in pack_paths(store))
    process = start_import(store, source)
    assert process.wait() == 0
    process.communicate()
    after = sum(path.stat().st_size for path in pack_paths(store))
    # The noise is stored once, whoever stored it, but for chunks of packs that were cut off.
    assert before >= 16 * MIB
    assert after <= IMAGE_BYTES // 2 * 1.02


def _set_when(condition: Callable[[], bool], event: threading.Event) -> None:
    pause = threading.Event()
    for _ in range(6000):
        if condition():
            event.set()
            return
        pause.wait(0.01)


def test_an_interrupted_import_ends_cleanly(store: Store, source: Path) -> None:
    # Who starts the tests in the background has it ignored, and a new process inherits that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = start_import(store, "-")
    finally:
        signal.signal(signal.SIGINT, before)
    said = feed_and_signal(process, source.read_bytes()[: 8 * MIB], signal.SIGINT)
    assert process.returncode == 130
    assert said.strip().endswith(b"cachefs: interrupted")
    assert b"Traceback" not in said
    assert not store.has_image("image")


def test_imports_at_once_do_not_disturb_each_other(
    store: Store, source: Path, tmp_path: Path
) -> None:
    processes = [start_import(store, source, name) for name in ("a", "b", "same", "same")]
    for process in processes:
        _, error = process.communicate()
        assert process.returncode == 0, error
    again = open_store(store.url)
    for name in ("a", "b", "same"):
        assert exported(again, tmp_path, name) == source.read_bytes()
    assert [version.number for version in again.image("same")[0].versions] == [1, 2]
    assert verify_store(again).problems == []


def test_an_import_that_finds_no_room_says_so(store: Store, source: Path, tmp_path: Path) -> None:
    arguments = ("import", "--store", store.url, "--catalog-dir", f"{tmp_path}/c", source, "image")
    process = subprocess.run(
        ["bash", "-c", 'ulimit -f 1024; trap "" XFSZ; exec "$@"', "-", *command_line(*arguments)],
        capture_output=True,
        check=False,
    )
    assert process.returncode in {4, 7}
    assert b"Traceback" not in process.stderr
    assert process.stderr.count(b"\n") == 1, process.stderr
    assert not store.has_image("image")
