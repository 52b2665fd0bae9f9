"""A small guest: its disk image, and a run of it in qemu."""

import hashlib
import shutil
import subprocess
from pathlib import Path

from tests.e2e.kernel import Kernel, busybox
from tests.images.disks import MIB, build_ext4
from tests.images.trees import copy_system_tree

# Printed by the guest on its console when every check has passed.
MARKER = "guest: all sums are right, and what I wrote is there"
INIT = f"""#!/bin/sh
export PATH=/bin
mount -t proc proc /proc
echo "guest: up after $(cut -d' ' -f1 /proc/uptime) s"
cd / && sha256sum -c -s /SHA256SUMS && sums=right
echo "guest: sums $sums after $(cut -d' ' -f1 /proc/uptime) s"
dd if=/usr/large of=/written bs=64k 2>/dev/null && sync
echo 3 > /proc/sys/vm/drop_caches
cmp /usr/large /written && echo again >> /SHA256SUMS && sync && written=there
[ "$sums $written" = "right there" ] && echo "{MARKER}"
poweroff -f
"""
APPLETS = ("sh", "mount", "sha256sum", "cut", "dd", "sync", "cmp", "poweroff", "echo")
MEMORY_MIB = 192


def build_guest_image(folder: Path, size_bytes: int = 64 * MIB) -> Path:
    """Make a bootable root file system in `folder`: busybox, real files, and their sums."""
    tree = folder / "guest-root"
    copy_system_tree(tree, size_bytes // 3)
    for name in ("bin", "sbin", "proc", "dev"):
        (tree / name).mkdir()
    shutil.copy(busybox(), tree / "bin/busybox")
    for applet in APPLETS:
        (tree / "bin" / applet).symlink_to("busybox")
    (tree / "usr/large").write_bytes(busybox().read_bytes() * 3)
    (tree / "sbin/init").write_text(INIT)
    (tree / "sbin/init").chmod(0o755)
    files = [path for path in tree.rglob("*") if path.is_file() and not path.is_symlink()]
    sums = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(tree)}\n"
        for path in files
    ]
    (tree / "SHA256SUMS").write_text("".join(sums))
    image = build_ext4(tree, folder / "guest.img", size_bytes)
    shutil.rmtree(tree)
    return image


def create_overlay(backing: Path, overlay: Path) -> Path:
    """Make a qcow2 overlay that reads from a raw image and takes what is written."""
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(backing), str(overlay)],
        check=True,
    )
    return overlay


def boot(
    kernel: Kernel,
    overlay: Path,
    append: str = "",
    memory_mib: int = MEMORY_MIB,
    wait_s: float = 90.0,
) -> str:
    """Boot a guest from an overlay and wait until it powers itself off.

    Args:
        kernel: What to boot.
        overlay: The qcow2 file of its disk.
        append: More words for the kernel's command line.
        memory_mib: The guest's memory.
        wait_s: After this long the guest is ended, and what it has said is returned all the same.

    Returns:
        What it said on its serial console.

    Raises:
        RuntimeError: qemu itself failed.
    """
    # A console without colours and cursor movements; quiet saves the time of a slow serial line.
    words = f"console=ttyS0 quiet panic=-1 systemd.show_status=false {append}"
    command = ["qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", str(memory_mib)]
    command += ["-display", "none", "-serial", "stdio", "-monitor", "none", "-no-reboot"]
    command += ["-nic", "none", "-kernel", str(kernel.vmlinuz), "-initrd", str(kernel.initramfs)]
    command += ["-append", words.strip(), "-drive", f"file={overlay},format=qcow2,if=virtio"]
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=wait_s, stdin=subprocess.DEVNULL, check=False
        )
    except subprocess.TimeoutExpired as expired:
        return (expired.stdout or b"").decode(errors="replace")
    if done.returncode:
        raise RuntimeError(f"qemu failed: {done.stderr.decode(errors='replace')}")
    return done.stdout.decode(errors="replace")
