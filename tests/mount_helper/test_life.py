"""Start, end and failures of a real mount."""

import json
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from mount_helper import mounting, rundir
from tests.mount_helper.conftest import DEADLINE_S, TinyMount, exists, wait_for
from tests.mount_helper.tiny_daemon import FILES, expected

pytestmark = pytest.mark.mount


def test_reads_and_status(tiny_mount: TinyMount) -> None:
    tiny_mount.started()
    assert sorted(os.listdir(tiny_mount.mountpoint)) == ["data", "small"]
    assert tiny_mount.data.read_bytes() == expected(2, 0, FILES[2][1])
    status = tiny_mount.status()
    assert status["source"] == "file:///a,b c"
    assert status["state"] == "serving"
    assert tiny_mount.part("daemon")["restarts"] == 0
    wait_for(lambda: tiny_mount.lane("kept") == 0, "the reply to the last release")
    assert tiny_mount.starts() == ["fresh"]
    state = json.loads((tiny_mount.folder / "state.json").read_text(encoding="utf-8"))
    assert state["state"] == "serving"


def test_read_ahead_is_raised(tiny_mount: TinyMount) -> None:
    tiny_mount.started("serve", "--read-ahead-kb", "512")
    device = mounting.mounts_at(str(tiny_mount.mountpoint))[0].device
    value = Path(f"/sys/class/bdi/{device}/read_ahead_kb").read_text(encoding="ascii")
    assert int(value) == 512


def ended(mount: TinyMount, supervisor_pid: int, daemon_pid: int) -> bool:
    return not (exists(supervisor_pid) or exists(daemon_pid) or mount.is_mounted())


@pytest.mark.parametrize("how", ["umount", "fusermount3", "SIGTERM", "SIGINT", "command"])
def test_end(tiny_mount: TinyMount, how: str) -> None:
    tiny_mount.started()
    pid, daemon_pid = tiny_mount.pid(), tiny_mount.daemon_pid()
    match how:
        case "umount":
            subprocess.run(["umount", str(tiny_mount.mountpoint)], check=True, timeout=DEADLINE_S)
        case "fusermount3":
            command = ["fusermount3", "-u", str(tiny_mount.mountpoint)]
            subprocess.run(command, check=True, timeout=DEADLINE_S)
        case "command":
            assert tiny_mount.ask(command="unmount")["ok"]
        case _:
            os.kill(pid, signal.Signals[how])
    wait_for(lambda: ended(tiny_mount, pid, daemon_pid), "the end of all")
    assert not (tiny_mount.folder / rundir.SUPERVISOR_SOCKET).exists()
    assert not (tiny_mount.folder / rundir.STATE_FILE).exists()


def test_busy_mount_is_not_pulled_away(tiny_mount: TinyMount) -> None:
    tiny_mount.started()
    pid, daemon_pid = tiny_mount.pid(), tiny_mount.daemon_pid()
    with tiny_mount.data.open("rb") as file:
        answer = tiny_mount.ask(command="unmount")
        assert not answer["ok"]
        assert "is in use" in str(answer["error"])
        os.kill(pid, signal.SIGTERM)
        wait_for(lambda: tiny_mount.status()["state"] == "unmounting", "the signal")
        assert file.read(1000) == expected(2, 0, 1000)
        assert tiny_mount.is_mounted()
    wait_for(lambda: ended(tiny_mount, pid, daemon_pid), "the end after the last user")


def test_second_signal_unmounts_lazily(tiny_mount: TinyMount) -> None:
    tiny_mount.started()
    pid, daemon_pid = tiny_mount.pid(), tiny_mount.daemon_pid()
    with tiny_mount.data.open("rb", buffering=0) as file:
        os.kill(pid, signal.SIGTERM)
        wait_for(lambda: tiny_mount.status()["state"] == "unmounting", "the signal")
        os.kill(pid, signal.SIGTERM)
        wait_for(lambda: not tiny_mount.is_mounted(), "the lazy unmount")
        assert file.read(1000) == expected(2, 0, 1000)
        assert exists(pid)
    wait_for(lambda: ended(tiny_mount, pid, daemon_pid), "the end after the last user")


def test_aborted_connection_leaves_no_mount(tiny_mount: TinyMount) -> None:
    tiny_mount.started()
    pid, daemon_pid = tiny_mount.pid(), tiny_mount.daemon_pid()
    minor = mounting.mounts_at(str(tiny_mount.mountpoint))[0].device.partition(":")[2]
    abort = Path(f"/sys/fs/fuse/connections/{minor}/abort")
    if not abort.exists():
        pytest.skip("fusectl is not mounted on /sys/fs/fuse/connections")
    abort.write_text("1", encoding="ascii")
    wait_for(lambda: ended(tiny_mount, pid, daemon_pid), "the end of all")


@pytest.mark.parametrize(
    ("mode", "arguments", "code", "words"),
    [
        ("refuses", [], 42, "the store is not there; look"),
        ("exits", [], 7, "exit code 7"),
        ("never-ready", ["--start-timeout-s", "0.5"], 8, "not ready within 0.5 s"),
        ("dies-before-init", [], 8, "signal 9"),
    ],
)
def test_start_failure(
    tiny_mount: TinyMount, mode: str, arguments: list[str], code: int, words: str
) -> None:
    result = tiny_mount.start(mode, *arguments)
    assert result.returncode == code
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert not tiny_mount.is_mounted()
    assert not (tiny_mount.folder / rundir.SUPERVISOR_SOCKET).exists()


def test_bad_mountpoints(tiny_mount: TinyMount, tmp_path: Path) -> None:
    tiny_mount.started()
    again = tiny_mount.start()
    assert again.returncode == 8
    assert "is a cachefs mount already" in again.stderr
    tiny_mount.clean_up()
    tiny_mount.mountpoint.rmdir()
    assert "does not exist" in tiny_mount.start().stderr
    tiny_mount.mountpoint.write_bytes(b"")
    assert "is not a folder" in tiny_mount.start().stderr
    assert "unknown mount option 'bogus'" in tiny_mount.start("serve", "--option", "bogus").stderr


def test_dead_supervisor(tiny_mount: TinyMount) -> None:
    """Its daemon ends, and the next start takes the dead mount away."""
    tiny_mount.started()
    pid, daemon_pid = tiny_mount.pid(), tiny_mount.daemon_pid()
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not exists(daemon_pid), "the end of the daemon")
    assert tiny_mount.is_mounted()
    tiny_mount.started()
    assert (tiny_mount.mountpoint / "small").read_bytes() == expected(3, 0, 100)
    assert len(mounting.mounts_at(str(tiny_mount.mountpoint))) == 1


def test_foreground(tiny_mount: TinyMount) -> None:
    command = tiny_mount.command("serve", "--foreground")
    with subprocess.Popen(
        command, env=tiny_mount.environment, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr
        assert "mounted file:///a,b c on" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_S) == 0


def test_socket_survives_nonsense(tiny_mount: TinyMount) -> None:
    tiny_mount.started()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(tiny_mount.folder / rundir.SUPERVISOR_SOCKET))
        connection.sendall(b"{nonsense\n")
        assert b"not a line of JSON" in connection.recv(1000)
        connection.sendall(b"[]\n")
        assert not json.loads(connection.recv(1000))["ok"]
        connection.sendall(b"x" * 70000)
        assert not tiny_mount.ask(command="?")["ok"]
    assert tiny_mount.status()["ok"]


def test_without_root(tmp_path: Path) -> None:
    """As nobody, through fusermount3; which wants /dev/fuse open to all, as udev makes it."""
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("only root can become nobody, with setpriv")
    folder = Path("/tmp") / f"cachefs-nobody-{os.getpid()}"
    folder.mkdir()
    mount = TinyMount(folder)
    device = Path("/dev/fuse")
    mode = device.stat().st_mode & 0o777
    device.chmod(0o666)
    try:
        for path in (folder, mount.mountpoint):
            shutil.chown(path, "nobody", "nogroup")
        # It may look into any folder, because the checkout and its Python may be root's own.
        capability = "+dac_read_search"
        drop = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
        drop += [f"--inh-caps={capability}", f"--ambient-caps={capability}"]
        command = [*drop, *mount.command("serve")]
        result = subprocess.run(
            command, check=False, env=mount.environment, capture_output=True, text=True, timeout=60
        )
        assert result.returncode == 0, result.stderr + mount.log()
        assert mount.status()["max_read"] == 131072
        reader = [*drop, "cat", str(mount.data)]
        data = subprocess.run(reader, check=True, capture_output=True, timeout=60).stdout
        assert data == expected(2, 0, FILES[2][1])
        pid, daemon_pid = mount.pid(), mount.daemon_pid()
        assert mount.ask(command="unmount")["ok"]
        wait_for(lambda: ended(mount, pid, daemon_pid), "the end of all")
    finally:
        mount.clean_up()
        device.chmod(mode)
        shutil.rmtree(folder)
