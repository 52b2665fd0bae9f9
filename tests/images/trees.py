"""Folders of real system files, and what an upgrade does to them."""

import os
import random
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Programs, libraries and texts, in the shares of a small server's /usr.
SOURCES = ((Path("/usr/bin"), 0.4), (Path("/usr/lib"), 0.4), (Path("/usr/share"), 0.2))
# Names that no tool on the way needs quoted.
PLAIN_NAME = re.compile(r"[A-Za-z0-9._+@-]+")
# Thousands of tiny files would take most of the time and little of the image.
SMALLEST_FILE_BYTES = 16 * 1024
LARGEST_FILE_BYTES = 8 * 1024 * 1024
# To fill the rest of a share would mean to look at every file of the system.
FULL_ENOUGH = 0.02
TREE_TIME_S = 1_700_000_000


@dataclass(frozen=True)
class Change:
    """What one upgrade did to the files of a tree, as paths below it; outer folders come first."""

    changed: tuple[Path, ...]
    added: tuple[Path, ...]
    removed: tuple[Path, ...]
    new_folders: tuple[Path, ...] = ()


def copy_system_tree(target: Path, budget_bytes: int) -> Path:
    """Fill `target` with copies of this system's own files, about `budget_bytes` of them.

    The same machine gives the same tree: files are taken in the order of their names.

    Returns:
        `target`.
    """
    for source, share in SOURCES:
        left_bytes = int(budget_bytes * share)
        for path in _plain_files(source):
            size_bytes = path.stat().st_size
            if not SMALLEST_FILE_BYTES <= size_bytes <= min(left_bytes, LARGEST_FILE_BYTES):
                continue
            copy = target / path.relative_to("/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
            copy.chmod(0o755 if os.access(path, os.X_OK) else 0o644)
            left_bytes -= size_bytes
            if left_bytes < budget_bytes * share * FULL_ENOUGH:
                break
    _set_times(target)
    return target


def upgrade_tree(tree: Path, seed: int = 1) -> Change:
    """Change `tree` as an upgrade does: about a tenth of the files change, a few come and go.

    Args:
        tree: A folder that `copy_system_tree` has filled; it is changed in place.
        seed: Another seed chooses other files.

    Returns:
        What was done.
    """
    chance = random.Random(seed)
    files = list(_plain_files(tree))
    changed, added, removed = [], [], []
    for path in files:
        draw = chance.random()
        if draw < 0.03:
            path.unlink()
            removed.append(path)
        elif draw < 0.13:
            _rebuild_file(path, chance)
            changed.append(path)
        elif draw < 0.16:
            copy = path.with_name(f"{path.name}.new")
            copy.write_bytes(path.read_bytes()[::-1])
            added.append(copy)
    _set_times(tree)
    return Change(
        changed=tuple(path.relative_to(tree) for path in changed),
        added=tuple(path.relative_to(tree) for path in added),
        removed=tuple(path.relative_to(tree) for path in removed),
    )


def _rebuild_file(path: Path, chance: random.Random) -> None:
    """Give a file other contents from some place on, and another length, as a new compile does."""
    content = path.read_bytes()
    cut = chance.randrange(len(content) + 1)
    path.write_bytes(content[:cut] + chance.randbytes(chance.randrange(1, 5000)) + content[cut:])


def _plain_files(folder: Path) -> Iterator[Path]:
    """Yield the regular files below `folder` whose paths are plain, in the order of their names."""
    with os.scandir(folder) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        if not PLAIN_NAME.fullmatch(entry.name):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _plain_files(Path(entry.path))
        elif entry.is_file(follow_symlinks=False) and os.access(entry.path, os.R_OK):
            yield Path(entry.path)


def _set_times(tree: Path) -> None:
    """Set all times of a tree to one moment, so that they do not tell its copies apart."""
    for folder, _, names in os.walk(tree, topdown=False):
        for name in names:
            os.utime(os.path.join(folder, name), (TREE_TIME_S, TREE_TIME_S))
        os.utime(folder, (TREE_TIME_S, TREE_TIME_S))
