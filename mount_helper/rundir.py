"""The run folder of a mount: where its supervisor, its daemon and the commands find each other.

Nothing here touches the mountpoint itself: a look at it hangs when its mount does.
"""

import fcntl
import hashlib
import os
import re
import stat
from pathlib import Path

from mount_helper.errors import MountError

SUPERVISOR_SOCKET = "supervisor.sock"
DAEMON_SOCKET = "daemon.sock"
STATE_FILE = "state.json"
LOG_FILE = "log"
LOCK_FILE = "lock"
LONGEST_SOCKET_PATH_BYTES = 107  # sun_path of unix(7) less its 0
NAME_LENGTH = 24


def canonical_mountpoint(mountpoint: str) -> str:
    """Return the one name of a mountpoint: absolute, its parent without symbolic links.

    Raises:
        MountError: It is `/`.
    """
    parent, name = os.path.split(os.path.abspath(mountpoint))
    if not name:
        raise MountError("/ cannot be a mountpoint; choose a folder below it")
    return os.path.join(os.path.realpath(parent), name)


def base_folder() -> Path:
    """Return the folder of all run folders of this user."""
    override = os.environ.get("CACHEFS_RUN_DIR")
    if override:
        return Path(override).absolute()
    if os.geteuid() == 0:
        return Path("/run/cachefs")
    session = os.environ.get("XDG_RUNTIME_DIR")
    return Path(session) / "cachefs" if session else Path(f"/tmp/cachefs-{os.geteuid()}")


def run_folder(mountpoint: str) -> Path:
    """Return the run folder of a mountpoint; it need not exist."""
    path = canonical_mountpoint(mountpoint)
    name = re.sub(r"[^A-Za-z0-9._-]", "_", os.path.basename(path))[:NAME_LENGTH]
    digest = hashlib.blake2b(os.fsencode(path), digest_size=6).hexdigest()
    return base_folder() / f"{name}-{digest}"


def make_run_folder(mountpoint: str) -> Path:
    """Make the run folder of a mountpoint, for this user only, and return it.

    Raises:
        MountError: It cannot be made, is somebody else's, or its path is too long for a socket.
    """
    folder = run_folder(mountpoint)
    longest = len(os.fsencode(folder / SUPERVISOR_SOCKET))
    if longest > LONGEST_SOCKET_PATH_BYTES:
        raise MountError(f"{folder}: too long for a socket; set CACHEFS_RUN_DIR to a shorter path")
    try:
        folder.parent.mkdir(mode=0o755 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        for path in (folder.parent, folder):
            _check_owner(path)
    except OSError as error:
        raise MountError(
            f"cannot make the run folder {folder}: {error.strerror}; set CACHEFS_RUN_DIR"
        ) from error
    return folder


def lock_run_folder(folder: Path, mountpoint: str) -> None:
    """Make sure that this is the only supervisor of the mountpoint; the lock ends with the process.

    Raises:
        MountError: There is another one.
    """
    lock_fd = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise MountError(
            f"{mountpoint} is a cachefs mount already; `cachefs umount {mountpoint}` ends it"
        ) from None


def _check_owner(path: Path) -> None:
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid not in {0, os.geteuid()}:
        raise MountError(f"{path} is not a folder of this user; remove it or set CACHEFS_RUN_DIR")
