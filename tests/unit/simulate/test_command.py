"""The real command."""

import json
from pathlib import Path

from tests.stores import command


def recording(folder: Path) -> Path:
    path = folder / "boot.txt"
    path.write_text("".join(f"{n} read {n * 37 % 64 * 128} 8\n" for n in range(400)))
    return path


def test_a_table(tmp_path: Path) -> None:
    done = command("simulate", "--policy", "sieve", "--size", "25%", recording(tmp_path))
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.decode().splitlines()[1:]]
    assert [row[4] for row in rows] == ["lru", "sieve", "min"]
    assert rows[0][2:4] == ["25%", "16"]


def test_json_in_several_processes(tmp_path: Path) -> None:
    done = command("simulate", "--jobs", "2", "--size", "25%", "--json", recording(tmp_path))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {"lru", "lfu", "arc", "s3fifo", "sieve", "2q", "min"} <= {r["policy"] for r in found}
    assert all(r["accesses"] == 400 and r["slots"] == 16 for r in found)


def test_what_cannot_be(tmp_path: Path) -> None:
    done = command("simulate", tmp_path / "nowhere")
    assert done.returncode == 3
    assert b"nowhere" in done.stderr
    done = command("simulate", "--chunk-size", "5KiB", recording(tmp_path))
    assert done.returncode == 2
