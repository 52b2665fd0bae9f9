"""mount(8), a line in /etc/fstab, and users who are not root."""

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.fixtures import Images
from tests.mount.mounts import CACHEFS, Mount, Mounts, exists, read_direct, wait_for

pytestmark = pytest.mark.mount

HELPER = CACHEFS.with_name("mount.cachefs")
NAME = "64k/mixture"


def run(command: list[str | Path], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        cwd="/",
        env=environment,
    )


def test_the_helper_in_the_convention_of_mount(mounts: Mounts, images: Images) -> None:
    mount = mounts(images.store.url)
    options = f"rw,quota=64MiB,cache_dir={mount.cache},noatime,_netdev,x-systemd.automount"
    done = run(
        [HELPER, mount.store, mount.mountpoint, "-n", "-o", options],
        {"CACHEFS_RUN_DIR": str(mount.run_base)},  # systemd gives no PATH and no HOME
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert mount.daemon()["l1"]["quota_bytes"] == 64 << 20
    assert mount.daemon()["l1"]["dir"] == str(mount.cache)
    assert read_direct(mount / NAME) == images.data[NAME]


IN_A_NAMESPACE = """
set -e
mount -t overlay none -o "lowerdir=$helpers:/usr/sbin" /usr/sbin || exit 77
{mount}
cmp "$mountpoint/$name" "$expected"
findmnt --noheadings --output SOURCE,FSTYPE "$mountpoint"
umount "$mountpoint"
"""
SKIPPED = 77
WAYS = {
    "mount": 'mount -t cachefs "$store" "$mountpoint" -o "$options"',
    "fstab": (
        'echo "$store $mountpoint cachefs $options,noauto,nofail 0 0" > "$expected.fstab"\n'
        'mount -T "$expected.fstab" "$mountpoint"'
    ),
    "unknown option": 'mount -t cachefs "$store" "$mountpoint" -o speed=9 && exit 1 || exit 0',
}


@pytest.mark.parametrize("way", WAYS)
def test_mount_8_finds_its_helper(mounts: Mounts, images: Images, tmp_path: Path, way: str) -> None:
    """In a mount namespace of its own, where /usr/sbin has a link to the helper."""
    mount = mounts(images.store.url)
    helpers = tmp_path / "helpers"
    helpers.mkdir()
    (helpers / "mount.cachefs").symlink_to(HELPER)
    expected = tmp_path / "expected"
    expected.write_bytes(images.data[NAME])
    script = IN_A_NAMESPACE.replace("{mount}", WAYS[way])
    done = run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
        {
            **mount.environment,
            "helpers": str(helpers),
            "store": mount.store,
            "mountpoint": str(mount.mountpoint),
            "options": f"quota=64MiB,cache_dir={mount.cache}",
            "name": NAME,
            "expected": str(expected),
        },
    )
    if done.returncode == SKIPPED:
        pytest.skip("no overlay can be mounted here")
    assert done.returncode == 0, done.stderr + mount.log()
    if way == "unknown option":
        assert "mount option 'speed' does not exist: take one of" in done.stderr
    else:
        assert done.stdout.split() == [mount.store, "fuse.cachefs"]
    wait_for(lambda: not mount.pids(), "the end of the mount")


NOBODY = 65534
# Nobody may look into any folder: the checkout and its Python may be root's own.
AS_NOBODY: list[str | Path] = [
    *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
]


class NobodysMount(Mount):
    """A mount by and of another user, through fusermount3."""

    def command(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return run([*AS_NOBODY, CACHEFS, *arguments], self.environment)


@pytest.fixture
def nobodys(images: Images) -> Iterator[NobodysMount]:
    """A folder of nobody's, and /dev/fuse open to all, as udev makes it."""
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("only root can become nobody, with setpriv")
    device = Path("/dev/fuse")
    mode = stat.S_IMODE(device.stat().st_mode)
    with tempfile.TemporaryDirectory(prefix="cachefs-") as name:
        mount = NobodysMount(Path(name), images.store.url)
        for path in (Path(name), mount.mountpoint):
            os.chown(path, NOBODY, NOBODY)
        device.chmod(0o666)
        try:
            yield mount
        finally:
            try:
                mount.end()
            finally:
                device.chmod(mode)


def test_without_root(nobodys: NobodysMount, images: Images, tmp_path: Path) -> None:
    nobodys.start()
    expected = tmp_path / "expected"
    for name in (NAME, "4k/mixture", "1024k/sparse"):
        expected.write_bytes(images.data[name])
        done = run([*AS_NOBODY, "cmp", nobodys / name, expected], nobodys.environment)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    status = nobodys.status()
    assert status["state"] == "serving"
    assert Path(f"/proc/{status['daemon']['pid']}").stat().st_uid == NOBODY
    # Not even root sees a mount of another user's.
    with pytest.raises(PermissionError):
        os.listdir(nobodys.mountpoint)
    pids = nobodys.pids()
    nobodys.umount()
    wait_for(lambda: not any(map(exists, pids)), "the end of all processes")


def test_without_root_across_a_killed_daemon(nobodys: NobodysMount, images: Images) -> None:
    nobodys.start()
    reader: list[str | Path] = [*AS_NOBODY, "sha256sum", nobodys / "pattern"]
    first = run(reader, nobodys.environment)
    assert first.returncode == 0, first.stderr
    nobodys.kill_daemon_and_wait()
    assert run(reader, nobodys.environment).stdout == first.stdout


def test_a_device_that_is_for_root_only_is_told(nobodys: NobodysMount) -> None:
    Path("/dev/fuse").chmod(0o600)
    done = nobodys.try_start()
    assert done.returncode == 8
    assert "/dev/fuse" in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_image_may_be_opened_for_writing_by_anybody_and_written_by_none(
    mounts: Mounts, images: Images
) -> None:
    """qemu opens memory files so, as whatever user it runs; it is root's mount."""
    mount = mounts(images.store.url)
    mount.start()
    script = f"""
import mmap, os
fd = os.open({str(mount / NAME)!r}, os.O_RDWR)
mapped = mmap.mmap(fd, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
mapped[0] = 1
try:
    os.pwrite(fd, b"x", 0)
except OSError as error:
    print(error.errno, os.geteuid())
"""
    done = run([*AS_NOBODY, sys.executable, "-c", script], mount.environment)
    assert (done.stdout, done.stderr) == (f"30 {NOBODY}\n", "")
    assert read_direct(mount / NAME) == images.data[NAME]
