"""A whole Debian system as a disk image, in two versions: as released, and upgraded in place.

Needs root, mmdebstrap and a package mirror, and takes about a minute; both images are kept in the
user's cache folder. For benches and the full guest, not for the quick tests.
"""

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.images.cache import made_once
from tests.images.disks import MIB, build_ext4, copy_sparse, upgrade_ext4
from tests.images.trees import PLAIN_NAME, Change

SUITE = "bookworm"
SIZE_BYTES = 1536 * MIB
FIRST_PACKAGES = ("systemd-sysv", "udev", "python3", "perl", "openssh-server")
# The second version has all security updates, and a service with its libraries on top.
SECOND_PACKAGES = (*FIRST_PACKAGES, "nginx-light", "vim-tiny", "git", "less")
WITHOUT_UPDATES = "sed -i -e /-security/d -e /-updates/d $1/etc/apt/sources.list"

# The full guest's own check, started only if the kernel's command line asks for it.
MARKER = "guest: systemd is up and all sums are right"
CHECK = f'exec >/dev/console 2>&1; sha256sum --check --quiet SHA256SUMS && echo "{MARKER}"'
CHECK_UNIT = f"""[Unit]
Description=Check every file of the image and power off
ConditionKernelCommandLine=cachefs.check
After=multi-user.target
[Service]
Type=oneshot
WorkingDirectory=/
ExecStart=/bin/sh -c '{CHECK}'
ExecStopPost=/bin/systemctl poweroff --force
[Install]
WantedBy=multi-user.target
"""


def debian_images() -> tuple[Path, Path]:
    """Return two versions of a Debian disk image, 1.5 GiB each.

    Raises:
        subprocess.CalledProcessError: mmdebstrap or a tool of e2fsprogs failed.
    """
    with made_once(f"debian-{SUITE}-2") as (place, fresh):
        if fresh:
            with tempfile.TemporaryDirectory(dir=fresh.parent) as work:
                _build(Path(work), fresh)
    return place / "v1.img", place / "v2.img"


def _build(work: Path, target: Path) -> None:
    first_tree, second_tree = work / "first", work / "second"
    _install(first_tree, FIRST_PACKAGES, f"--setup-hook={WITHOUT_UPDATES}")
    image = build_ext4(first_tree, target / "v1.img", SIZE_BYTES)
    _install(second_tree, SECOND_PACKAGES)
    upgraded = copy_sparse(image, target / "v2.img")
    upgrade_ext4(upgraded, second_tree, compare_trees(first_tree, second_tree))


def _install(tree: Path, packages: Sequence[str], *options: str) -> None:
    """Install a Debian system into a new folder, with the check of the full guest."""
    command = ["mmdebstrap", "--quiet", "--variant=minbase", "--format=directory", "--mode=root"]
    command += [f"--include={','.join(packages)}", *options, SUITE, str(tree)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    unit = tree / "etc/systemd/system/cachefs-check.service"
    unit.write_text(CHECK_UNIT)
    wants = tree / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(exist_ok=True)
    (wants / unit.name).symlink_to(f"/etc/systemd/system/{unit.name}")
    programs = [path for path in plain_files(tree) if path.parts[0] == "usr"]
    sums = "".join(f"{_sum_of(tree / path)}  {path}\n" for path in programs)
    (tree / "SHA256SUMS").write_text(sums)


def compare_trees(first: Path, second: Path) -> Change:
    """Return what changed from one tree to another, regular files only."""
    before, after = set(plain_files(first)), set(plain_files(second))
    both = sorted(before & after)
    folders = {parent for path in after for parent in path.parents}
    return Change(
        changed=tuple(path for path in both if _sum_of(first / path) != _sum_of(second / path)),
        added=tuple(sorted(after - before)),
        removed=tuple(sorted(before - after)),
        new_folders=tuple(sorted(path for path in folders if not (first / path).exists())),
    )


def plain_files(tree: Path) -> Iterator[Path]:
    """Yield the regular files of a tree with plain names, as paths below it."""
    for folder, folders, names in os.walk(tree):
        folders.sort()
        for name in sorted(names):
            path = Path(folder, name)
            relative = path.relative_to(tree)
            plain = all(PLAIN_NAME.fullmatch(part) for part in relative.parts)
            if plain and path.is_file() and not path.is_symlink():
                yield relative


def _sum_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
