"""The real command, in a process of its own: what it prints, and what it ends with."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cachefs.store.store import open_store
from tests.stores import CHUNK, command, command_line, flip, pack_paths

Run = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs a command on the store in `tmp_path/store`."""
    environment = {
        "CACHEFS_STORE": str(tmp_path / "store"),
        "CACHEFS_CATALOG_DIR": str(tmp_path / "catalog"),
    }

    def run_command(
        *arguments: str | Path, given: bytes = b""
    ) -> subprocess.CompletedProcess[bytes]:
        return command(*arguments, given=given, environment=environment)

    return run_command


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.write(os.urandom(10 * CHUNK) + bytes(2 * CHUNK) + b"text " * 1000)
        file.truncate(100 * CHUNK)
    return path


def assert_error(done: subprocess.CompletedProcess[bytes], exit_code: int, message: str) -> None:
    """One line on standard error, nothing on standard output."""
    said = done.stderr.decode()
    assert done.returncode == exit_code, said
    assert message in said
    assert said.startswith("cachefs: ")
    assert said.count("\n") == 1, said
    assert done.stdout == b""


def test_a_store_is_made(run: Run, tmp_path: Path) -> None:
    done = run("init", tmp_path / "store")
    assert done.returncode == 0
    assert done.stdout.decode() == f"made a store in file://{tmp_path}/store\n"
    assert_error(run("init", tmp_path / "store"), 6, "changed by somebody else")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter").touch()
    assert_error(run("init", tmp_path / "other"), 2, "give an empty folder")


def test_an_import_makes_the_store_and_says_what_it_did(run: Run, disk: Path) -> None:
    done = run("import", "--chunk-size", "4KiB", disk, "debian/12")
    assert done.returncode == 0, done.stderr
    assert done.stderr.decode().startswith("cachefs: made a store in file://")
    said = done.stdout.decode()
    for words in ("debian/12 version 1:", "size", "zero", "in holes", "duplicate", "new", "stored"):
        assert words in said


def test_an_import_reports_to_programs(run: Run, disk: Path) -> None:
    done = run("import", "--json", "--chunk-size", "4KiB", "--label", "os=debian", disk, "a")
    report = json.loads(done.stdout)
    assert report["name"] == "a"
    assert report["version"] == 1
    assert report["size_bytes"] == 100 * CHUNK
    assert report["zero_bytes"] + report["duplicate_bytes"] + report["new_bytes"] == 100 * CHUNK
    assert report["packs_written"] == 1
    assert set(report) >= {"hole_bytes", "compression_ratio", "duration_s", "speed_mb_per_s"}
    assert json.loads(run("images", "--json").stdout)[0]["labels"] == {"os": "debian"}


def test_standard_input_is_imported(run: Run, disk: Path, tmp_path: Path) -> None:
    assert run("import", "-", "piped", given=disk.read_bytes()).returncode == 0
    assert run("export", "piped", tmp_path / "out").returncode == 0
    assert (tmp_path / "out").read_bytes() == disk.read_bytes()
    with disk.open("rb") as file:
        done = subprocess.run(
            command_line(
                *("import", "--json", "--store", tmp_path / "store"),
                *("--catalog-dir", tmp_path / "catalog", "-", "redirected"),
            ),
            stdin=file,
            capture_output=True,
            check=True,
        )
    assert json.loads(done.stdout)["hole_bytes"] > 0  # a redirected file keeps its holes


def test_an_export_is_the_image(run: Run, disk: Path, tmp_path: Path) -> None:
    run("import", disk, "a")
    run("import", "-", "a", given=b"second")
    assert run("export", "a", "-").stdout == b"second"
    assert run("export", "--version", "1", "a", "-").stdout == disk.read_bytes()
    assert_error(run("export", "--version", "3", "a", "-"), 3, "no version 3")
    target = tmp_path / "out"
    assert run("export", "a", target).stdout == b""
    assert_error(run("export", "a", target), 2, "--force")
    assert run("export", "--force", "--version", "1", "a", target).returncode == 0
    assert target.read_bytes() == disk.read_bytes()


def test_images_are_listed(run: Run, disk: Path) -> None:
    run("import", disk, "debian/12")
    run("import", "-", "alpine", given=b"x")
    lines = run("images").stdout.decode().splitlines()
    assert lines[0].split() == [
        *("NAME", "VERSION", "SIZE", "DATA", "STORED", "CHUNK", "CREATED", "LABELS")
    ]
    assert [line.split()[0] for line in lines[1:]] == ["alpine", "debian/12"]
    details = json.loads(run("info", "--json", "debian/12").stdout)
    assert details["name"] == "debian/12"
    assert details["versions"][0]["packs"] == 1
    assert details["versions"][0]["size_bytes"] == 100 * CHUNK
    assert 0 < details["versions"][0]["zero_ratio"] < 1
    assert "version    1" in run("info", "debian/12").stdout.decode()
    assert_error(run("info", "nothing"), 3, "no image 'nothing'")


def test_a_damaged_record_hides_no_other_image(run: Run, disk: Path, tmp_path: Path) -> None:
    run("import", disk, "a")
    run("import", disk, "b")
    (tmp_path / "store" / "images" / "a.json").write_bytes(b"{")
    done = run("images")
    assert "not an image record" in done.stderr.decode()
    assert done.stdout.decode().splitlines()[1].split()[0] == "b"


def test_an_image_is_renamed_and_removed(run: Run, disk: Path) -> None:
    run("import", disk, "a")
    assert run("rename", "a", "b/c").stdout.decode() == "'a' is now 'b/c'\n"
    assert_error(run("rename", "a", "d"), 3, "no image 'a'")
    assert_error(run("import", disk, "b"), 6, "is a folder with images in it")
    assert_error(run("import", disk, "b/c/d"), 6, "'b/c' is an image")
    assert_error(run("rm", "b/c"), 2, "give --yes")
    done = run("rm", "--yes", "b/c")
    assert "removed 'b/c' and its 1 version" in done.stdout.decode()
    assert "until they are collected" in done.stdout.decode()
    assert_error(run("rm", "--yes", "b/c"), 3, "no image")


@pytest.mark.parametrize(("answer", "exit_code"), [(b"y\n", 0), (b"n\n", 130), (b"\x04", 130)])
def test_on_a_terminal_a_removal_asks(
    run: Run, disk: Path, tmp_path: Path, answer: bytes, exit_code: int
) -> None:
    run("import", disk, "a")
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command_line("rm", "--store", tmp_path / "store", "a"),
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        os.write(ours, answer)
        process.communicate(timeout=60)
    os.close(ours)
    os.close(theirs)
    assert process.returncode == exit_code
    assert open_store(str(tmp_path / "store")).has_image("a") == (exit_code != 0)


def test_a_store_is_verified(run: Run, disk: Path, tmp_path: Path) -> None:
    run("import", "--chunk-size", "4KiB", disk, "a")
    done = run("verify")
    assert done.returncode == 0
    assert "no problems" in done.stdout.decode()
    store = open_store(str(tmp_path / "store"))
    flip(pack_paths(store)[0], 100)
    (tmp_path / "store" / "letter").touch()
    done = run("verify")
    assert done.returncode == 5
    said = done.stdout.decode()
    assert "letter: no part of a store" in said
    assert "hits a version 1; move the pack away and import again what uses it: a" in said
    assert done.stderr.decode().count("\n") == 1
    report = json.loads(run("verify", "--json", "a").stdout)
    assert report["problems"][0]["images"] == ["a version 1"]
    assert_error(run("verify", "b"), 3, "no image 'b'")
    assert_error(run("export", "a", tmp_path / "out"), 5, "cachefs verify")


def test_wrong_use_is_one_line_with_what_to_do(run: Run, disk: Path, tmp_path: Path) -> None:
    run("init", tmp_path / "store")
    for arguments, message in (
        (["impart"], "No such command 'impart'"),
        (["import", disk], "Missing argument 'NAME'"),
        (["import", "--chunk-size", "5KiB", disk, "a"], "power of two"),
        (["import", "--chunk-size", "much", disk, "a"], "is not a size"),
        (["import", "--label", "x", disk, "a"], "is not a label"),
        (["import", disk, "../a"], "image name"),
        (["import", tmp_path, "a"], "is a folder"),
        (["import", "--convert", "-", "a"], "standard input"),
        (["images", "--store", "http://x"], "not http://"),
        (["images", "--store", "s3://x"], "write s3://"),
        (["images", "--surplus"], "No such option"),
    ):
        assert_error(run(*arguments), 2, message)
    assert_error(run("import", tmp_path / "nothing", "a"), 3, "there is no file")


def test_a_store_is_needed(tmp_path: Path) -> None:
    assert_error(command("images"), 2, "--store")
    assert_error(command("images", "--store", tmp_path), 3, "cachefs init")
    assert_error(command("images", "--store", tmp_path / "nothing"), 4, "cannot read")
    (tmp_path / "letter").touch()
    assert_error(
        command("import", "--store", tmp_path, tmp_path / "letter", "a"), 3, "cachefs init"
    )


def test_a_later_format_asks_for_a_newer_cachefs(run: Run, tmp_path: Path) -> None:
    run("init", tmp_path / "store")
    path = tmp_path / "store" / "cachefs.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 9'))
    assert_error(run("images"), 5, "newer cachefs")


def test_a_qcow2_image_is_noticed(run: Run, disk: Path, tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", disk, path], check=True)
    run("init", tmp_path / "store")
    assert "--convert" in run("import", path, "as-it-is").stderr.decode()
    assert run("import", "--convert", path, "raw").stderr == b""
    assert run("export", "raw", "-").stdout == disk.read_bytes()
    assert run("export", "as-it-is", "-").stdout == path.read_bytes()


def test_verbose_shows_where_an_error_came_from(run: Run, tmp_path: Path, disk: Path) -> None:
    run("init", tmp_path / "store")
    for arguments in (["-v", "info", "a"], ["info", "-v", "a"]):
        said = run(*arguments).stderr.decode()
        assert "Traceback" in said
        assert said.splitlines()[-1].startswith("cachefs: no image 'a'")
    assert "stored pack" in run("-v", "import", disk, "a").stderr.decode()


def test_who_stops_reading_is_not_told_off(run: Run, tmp_path: Path, disk: Path) -> None:
    disk.write_bytes(os.urandom(1 << 20))
    run("import", disk, "a")
    with subprocess.Popen(
        command_line("export", "--store", tmp_path / "store", "a", "-"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_progress_is_shown_on_a_terminal_and_only_there(
    run: Run, tmp_path: Path, disk: Path
) -> None:
    run("init", tmp_path / "store")
    assert run("import", disk, "a").stderr == b""
    ours, theirs = pty.openpty()
    done = subprocess.run(
        command_line("verify", "--store", tmp_path / "store"),
        stdout=subprocess.PIPE,
        stderr=theirs,
        check=False,
        env={**os.environ, "TERM": "xterm"},
    )
    os.close(theirs)
    assert done.returncode == 0
    assert b"verify" in os.read(ours, 100_000)
    os.close(ours)


def test_help_is_quick_because_it_loads_little() -> None:
    script = "import sys, cachefs.cli.main as m; m.run(['--help']); print(sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    for heavy in ("numpy", "zstandard", "lmdb", "rich", "trio", "pydantic"):
        assert f"'{heavy}'" not in done.stdout


def test_the_version_is_printed() -> None:
    assert command("--version").stdout.startswith(b"cachefs ")
