"""Disk images with an ext4 file system in them, made from a folder."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.images.trees import TREE_TIME_S, Change, copy_system_tree, upgrade_tree

MIB = 1024 * 1024
# Fixed, so that two images of the same tree differ in nothing but the inodes' change times.
UUID = "5f8b4e0c-7a51-4bb0-9a6e-0c1f2d3e4a5b"
ENVIRONMENT = {**os.environ, "E2FSPROGS_FAKE_TIME": str(TREE_TIME_S)}


def build_ext4(tree: Path, image: Path, size_bytes: int) -> Path:
    """Make an ext4 file system with the files of `tree` in a new, sparse file.

    4 KiB blocks whatever the size, as on real systems (mke2fs would choose 1 KiB for small ones).

    Returns:
        `image`.

    Raises:
        subprocess.CalledProcessError: mke2fs failed, for example because the tree does not fit.
    """
    image.unlink(missing_ok=True)
    with image.open("wb") as file:
        file.truncate(size_bytes)
    inode_count = sum(1 + len(names) for _, _, names in os.walk(tree)) * 5 // 4 + 256
    options = ["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-N", str(inode_count)]
    extended = ["-U", UUID, "-E", f"hash_seed={UUID},root_owner=0:0,lazy_itable_init=1"]
    _run(["mke2fs", *options, *extended, "-d", str(tree), str(image)])
    return image


def upgrade_ext4(image: Path, tree: Path, change: Change) -> Path:
    """Bring a file system from a tree before a change to the tree after it, in place.

    Blocks of files that did not change stay where they are, as they do when a running system is
    upgraded. (A fresh `build_ext4` of the changed tree moves everything behind the first change.)

    Returns:
        `image`.

    Raises:
        RuntimeError: debugfs could not do one of the steps.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".debugfs") as script:
        script.write("\n".join(_debugfs_commands(tree, change)) + "\n")
        script.flush()
        done = _run(["debugfs", "-w", "-f", script.name, str(image)])
    # debugfs ends with 0 whatever happens; what it says tells. The first line is its version.
    complaints = [line for line in done.stderr.splitlines()[1:] if line]
    if complaints:
        raise RuntimeError(f"debugfs could not upgrade {image}: {complaints[0]}")
    return image


def check_ext4(image: Path) -> None:
    """Check that the file system is sound; raises subprocess.CalledProcessError if it is not."""
    _run(["e2fsck", "-f", "-n", str(image)])


def build_two_versions(folder: Path, size_bytes: int, fill: float = 0.6) -> tuple[Path, Path]:
    """Make two versions of a system's disk image in `folder`: one, and the same after an upgrade.

    Args:
        folder: Where `v1.img` and `v2.img` go; it exists.
        size_bytes: The size of each image.
        fill: Which share of it is files; the rest are zeros.

    Returns:
        The two images.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix="tree-") as tree_name:
        tree = copy_system_tree(Path(tree_name), int(size_bytes * fill))
        first = build_ext4(tree, folder / "v1.img", size_bytes)
        second = copy_sparse(first, folder / "v2.img")
        upgrade_ext4(second, tree, upgrade_tree(tree))
    return first, second


def copy_sparse(source: Path, target: Path) -> Path:
    """Copy a file and keep its holes; returns `target`."""
    _run(["cp", "--sparse=always", "--reflink=auto", str(source), str(target)])
    return target


def _debugfs_commands(tree: Path, change: Change) -> Iterator[str]:
    for path in (*change.removed, *change.changed):
        yield f"rm /{path}"
    for folder in change.new_folders:
        yield f"mkdir /{folder}"
    for path in (*change.changed, *change.added):
        yield f"write {tree / path} /{path}"


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    # The tools of e2fsprogs live in /sbin, which is not in every PATH.
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    program = shutil.which(command[0], path=path) or command[0]
    return subprocess.run(
        [program, *command[1:]], env=ENVIRONMENT, check=True, text=True, capture_output=True
    )
