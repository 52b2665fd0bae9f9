"""mount(2) and umount(2) of a FUSE file system without libfuse, as root or through fusermount3."""

import array
import ctypes
import errno
import os
import re
import shutil
import socket
import stat
from dataclasses import dataclass
from pathlib import Path

from mount_helper.errors import MountError

FILE_SYSTEM_TYPE = "fuse.cachefs"
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_NOATIME, MS_NODIRATIME = 2, 4, 8, 1024, 2048
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8
FLAG_OF_OPTION = {"noexec": MS_NOEXEC, "noatime": MS_NOATIME, "nodiratime": MS_NODIRATIME}
# They say what cachefs does anyway. Not MS_RDONLY for "ro": qemu opens memory files with O_RDWR.
IMPLIED_OPTIONS = {"ro", "nosuid", "nodev", "default_permissions", "relatime"}
OTHERS_OPTIONS = {"allow_other", "noallow_other"}

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class MountRequest:
    """What to mount, and how.

    Attributes:
        mountpoint: Canonical (see rundir).
        source: What /proc/mounts shows: the URL of the store.
        max_read_bytes: The largest read that the kernel sends.
        options: Options of mount(8) that belong to the kernel.
    """

    mountpoint: str
    source: str
    max_read_bytes: int
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class MountEntry:
    """One line of /proc/self/mountinfo."""

    device: str
    mountpoint: str
    file_system_type: str


def mounts_at(mountpoint: str) -> list[MountEntry]:
    """Return the mounts on exactly this path, the topmost last. Never touches the mounts."""
    found = []
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        fields = line.split(b" ")
        escaped = re.sub(rb"\\([0-7]{3})", lambda code: bytes([int(code[1], 8)]), fields[4])
        path = os.fsdecode(escaped)
        if path == mountpoint:
            kind = os.fsdecode(fields[fields.index(b"-") + 1])
            found.append(MountEntry(os.fsdecode(fields[2]), path, kind))
    return found


def is_mounted(mountpoint: str) -> bool:
    """Return whether a cachefs mount is the topmost one on this path."""
    entries = mounts_at(mountpoint)
    return bool(entries) and entries[-1].file_system_type == FILE_SYSTEM_TYPE


def check_options(options: tuple[str, ...]) -> None:
    """Raise MountError for a mount option that nobody knows."""
    for option in options:
        if option not in IMPLIED_OPTIONS | OTHERS_OPTIONS | FLAG_OF_OPTION.keys():
            raise MountError(f"unknown mount option {option!r}; see `cachefs mount --help`")


def check_mountpoint(mountpoint: str) -> None:
    """Raise MountError unless a mount can be made there. An empty folder is not asked for."""
    try:
        status = os.stat(mountpoint)
    except FileNotFoundError:
        raise MountError(f"{mountpoint} does not exist; make the folder first") from None
    except OSError as error:
        raise MountError(f"{mountpoint}: {error.strerror}") from error
    if not stat.S_ISDIR(status.st_mode):
        raise MountError(f"{mountpoint} is not a folder")
    if not os.path.exists("/dev/fuse"):
        raise MountError("/dev/fuse is missing; load the kernel module: modprobe fuse")


def mount(request: MountRequest) -> int:
    """Mount, and return the fd of /dev/fuse.

    Raises:
        MountError: With what to do about it.
    """
    check_options(request.options)
    return _mount_as_root(request) if os.geteuid() == 0 else _mount_with_fusermount(request)


def _mount_as_root(request: MountRequest) -> int:
    try:
        fuse_fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise MountError(f"cannot open /dev/fuse: {error.strerror}; modprobe fuse") from error
    flags = MS_NOSUID | MS_NODEV
    for option in request.options:
        flags |= FLAG_OF_OPTION.get(option, 0)
    data = (
        f"fd={fuse_fd},rootmode=40000,user_id={os.geteuid()},group_id={os.getegid()},"
        f"max_read={request.max_read_bytes}"
    )
    if "noallow_other" not in request.options:
        data += ",allow_other"
    failed = _libc.mount(
        os.fsencode(request.source),
        os.fsencode(request.mountpoint),
        FILE_SYSTEM_TYPE.encode(),
        ctypes.c_ulong(flags),
        data.encode(),
    )
    if failed:
        code = ctypes.get_errno()
        os.close(fuse_fd)
        hint = {
            errno.EPERM: "; the container needs CAP_SYS_ADMIN",
            errno.ENODEV: "; the kernel has no FUSE: modprobe fuse",
        }.get(code, "")
        raise MountError(f"cannot mount on {request.mountpoint}: {os.strerror(code)}{hint}")
    return fuse_fd


def _fusermount() -> str:
    program = shutil.which("fusermount3", path=os.environ.get("PATH", os.defpath))
    if not program:
        raise MountError("fusermount3 is missing; apt install fuse3, or mount as root")
    return program


def _run(program: str, arguments: list[str], extra_environment: dict[str, str]) -> tuple[int, str]:
    """Run a program to its end; return its exit code and the last line that it wrote to stderr."""
    read_fd, write_fd = os.pipe()
    pid = os.posix_spawn(
        program,
        [program, *arguments],
        {**os.environ, **extra_environment},
        file_actions=[(os.POSIX_SPAWN_DUP2, write_fd, 2)],
    )
    os.close(write_fd)
    with os.fdopen(read_fd, "rb") as stream:
        lines = stream.read().decode(errors="replace").strip().splitlines()
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), lines[-1] if lines else ""


def _mount_with_fusermount(request: MountRequest) -> int:
    """fusermount3 is setuid root: it mounts, and sends the fd through a socket (_FUSE_COMMFD)."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    source = request.source.replace("\\", "\\\\").replace(",", "\\,")
    options = [f"max_read={request.max_read_bytes}"]
    options += [f"fsname={source}", "subtype=cachefs"]
    options += [option for option in request.options if option in {*FLAG_OF_OPTION, "allow_other"}]
    with ours, theirs:
        theirs.set_inheritable(True)
        arguments = ["-o", ",".join(options), "--", request.mountpoint]
        environment = {"_FUSE_COMMFD": str(theirs.fileno())}
        code, message = _run(_fusermount(), arguments, environment)
        theirs.close()
        fds = array.array("i")
        if code == 0:
            space = socket.CMSG_LEN(fds.itemsize)
            for level, kind, data in ours.recvmsg(1, space)[1]:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    fds.frombytes(data[: fds.itemsize])
    if not fds:
        hint = ""
        if "user_allow_other" in message:
            hint = "; write user_allow_other into /etc/fuse.conf, or mount without allow_other"
        if "/dev/fuse: Permission denied" in message:
            hint = "; only root may: chmod 666 /dev/fuse lets all users, as udev does"
        raise MountError(f"cannot mount on {request.mountpoint}: {message or code}{hint}")
    os.set_inheritable(fds[0], False)
    return fds[0]


def unmount(mountpoint: str, *, lazy: bool = False) -> None:
    """Unmount.

    Args:
        mountpoint: Canonical (see rundir).
        lazy: Take the mount out of the tree now; it ends when its last file is closed.

    Raises:
        MountError: Exit code 16 (EBUSY) if it is in use.
    """
    if os.geteuid() == 0:
        flags = UMOUNT_NOFOLLOW | (MNT_DETACH if lazy else 0)
        if _libc.umount2(os.fsencode(mountpoint), flags) == 0:
            return
        code, message = ctypes.get_errno(), os.strerror(ctypes.get_errno())
    else:
        arguments = ["-u", *(["-z"] if lazy else []), "--", mountpoint]
        failed, message = _run(_fusermount(), arguments, {"LC_ALL": "C"})
        if not failed:
            return
        code = errno.EBUSY if "busy" in message else errno.EPERM
    if code == errno.EINVAL:
        raise MountError(f"{mountpoint} is not mounted")
    if code == errno.EBUSY:
        raise MountError(f"{mountpoint} is in use; see `fuser -vm {mountpoint}`", errno.EBUSY)
    raise MountError(f"cannot unmount {mountpoint}: {message}")


def raise_read_ahead(mountpoint: str, read_ahead_kb: int) -> bool:
    """Let buffered sequential reads ask for more at once than the 128 KiB of FUSE (root only).

    Returns:
        Whether the kernel took it. INIT must have been answered: its reply sets the old value.
    """
    entries = mounts_at(mountpoint)
    if not entries or os.geteuid() != 0:
        return False
    try:
        path = Path(f"/sys/class/bdi/{entries[-1].device}/read_ahead_kb")
        path.write_text(f"{read_ahead_kb}\n", encoding="ascii")
    except OSError:
        return False
    return True
