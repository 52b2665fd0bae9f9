"""A guest's kernel and initramfs, made from Debian's packages without installing them."""

import lzma
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.initramfs import CONSOLE, build_initramfs, program
from tests.images.cache import made_once

# The kernel for virtual machines: a third of the size of the general one.
KERNEL_PACKAGE = "linux-image-cloud-amd64"
MODULES = ("virtio_pci", "virtio_blk", "ext4")
INIT = b"""#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
while read module; do /bin/busybox insmod /modules/$module; done < /modules/order
/bin/busybox mount -t ext4 -o rw /dev/vda /root || echo "initramfs: no root file system"
exec /bin/busybox switch_root /root /sbin/init
"""


@dataclass(frozen=True)
class Kernel:
    """What qemu boots: it mounts /dev/vda read-write and runs its /sbin/init."""

    vmlinuz: Path
    initramfs: Path


def busybox() -> Path:
    """Return the path of the static busybox of this system."""
    found = shutil.which("busybox", path=f"{os.environ.get('PATH', '')}:/bin:/usr/bin")
    if not found:
        raise RuntimeError("busybox-static is not installed: run `make setup`")
    return Path(found)


def guest_kernel() -> Kernel:
    """Return the guest's kernel; downloaded once and kept in the user's cache folder.

    Raises:
        subprocess.CalledProcessError: The package could not be downloaded or unpacked.
    """
    with made_once("guest-kernel-1") as (place, fresh):
        if fresh:
            with tempfile.TemporaryDirectory() as work:
                _build_kernel(Path(work), fresh)
    return Kernel(place / "vmlinuz", place / "initramfs")


def _build_kernel(work: Path, target: Path) -> None:
    package = _download(KERNEL_PACKAGE, work)
    tree = work / "tree"
    subprocess.run(["dpkg-deb", "-x", str(package), str(tree)], check=True)
    (vmlinuz,) = tree.glob("boot/vmlinuz-*")
    shutil.copyfile(vmlinuz, target / "vmlinuz")
    (modules,) = tree.glob("lib/modules/*")
    files = _modules_in_order(modules)
    entries = {
        "init": program(INIT),
        "bin/busybox": program(busybox().read_bytes()),
        "dev/console": CONSOLE,
        "root/.keep": program(b""),
        "modules/order": program("".join(f"{name}.ko\n" for name in files).encode()),
    }
    for name, content in files.items():
        entries[f"modules/{name}.ko"] = program(content)
    (target / "initramfs").write_bytes(build_initramfs(entries))


def _download(metapackage: str, folder: Path) -> Path:
    """Download the kernel that a metapackage depends on; returns the package's file."""
    shown = _apt("apt-cache", "depends", metapackage)
    if shown.returncode or not shown.stdout:
        # The package lists are not there yet (or not this user's to renew: then this fails, too).
        _apt("apt-get", "-qq", "update").check_returncode()
        shown = _apt("apt-cache", "depends", metapackage)
    found = re.search(r"Depends: (linux-image-\S+)", shown.stdout)
    if not found:
        raise RuntimeError(f"apt knows no kernel behind {metapackage}: {shown.stdout}")
    _apt("apt-get", "-qq", "download", found[1], folder=folder).check_returncode()
    (package,) = folder.glob("*.deb")
    return package


def _apt(*command: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    # Without this apt warns that its own user may not write to a temporary folder.
    sandbox = ["-o", "APT::Sandbox::User=root"] if command[0] == "apt-get" else []
    return subprocess.run(
        [command[0], *sandbox, *command[1:]],
        cwd=folder,
        env={**os.environ, "LC_ALL": "C"},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )


def _modules_in_order(folder: Path) -> dict[str, bytes]:
    """Return the needed modules that are not built in, each behind those that it depends on."""
    built_in = {
        _module_name(Path(line)) for line in (folder / "modules.builtin").read_text().splitlines()
    }
    paths = {_module_name(path): path for path in folder.rglob("*.ko*")}
    ordered: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in built_in or name in ordered:
            return
        content = paths[name].read_bytes()
        if paths[name].suffix == ".xz":
            content = lzma.decompress(content)
        found = re.search(rb"\0depends=([^\0]*)\0", content)
        for dependency in found[1].decode().split(",") if found and found[1] else []:
            add(dependency.replace("-", "_"))
        ordered[name] = content

    for name in MODULES:
        add(name)
    return ordered


def _module_name(path: Path) -> str:
    return path.name.partition(".")[0].replace("-", "_")
