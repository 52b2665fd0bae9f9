"""The parts of the mount helper that need no mount."""

import os
from pathlib import Path

import pytest

from mount_helper import launching, mount_cachefs, mounting, rundir, settings
from mount_helper.backoff import LONGEST_WAIT_ONCE_READY_S, LONGEST_WAIT_S, Backoff
from mount_helper.errors import MountError


def test_backoff_grows_and_resets() -> None:
    backoff = Backoff()
    waits = [backoff.next_wait_s(0) for _ in range(12)]
    assert waits[:4] == [0, 0.1, 0.2, 0.4]
    assert waits[-1] == LONGEST_WAIT_S
    assert backoff.next_wait_s(1) == LONGEST_WAIT_ONCE_READY_S
    assert backoff.next_wait_s(11) == 0
    assert backoff.next_wait_s(0) == 0.1


def test_run_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CACHEFS_RUN_DIR", str(tmp_path / "run"))
    (tmp_path / "link").symlink_to(tmp_path)
    direct = rundir.run_folder(str(tmp_path / "images"))
    assert rundir.run_folder(f"{tmp_path}/link/images/") == direct
    assert rundir.run_folder(str(tmp_path / "other")) != direct
    assert not direct.exists()
    assert rundir.make_run_folder(str(tmp_path / "images")) == direct
    assert direct.stat().st_mode & 0o777 == 0o700
    odd = rundir.run_folder(str(tmp_path / ("ü, \n" * 30)))
    assert len(odd.name) <= rundir.NAME_LENGTH + 13
    with pytest.raises(MountError, match="cannot be a mountpoint"):
        rundir.run_folder("/")


def test_run_folder_never_looks_at_the_mountpoint(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    target = str(tmp_path / "images")
    real = os.lstat

    def guarded(path: str) -> os.stat_result:
        assert os.fspath(path) != target, "a look at the mountpoint may hang"
        return real(path)

    monkeypatch.setattr(os, "lstat", guarded)
    rundir.run_folder(target)


def test_run_folder_errors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CACHEFS_RUN_DIR", f"/tmp/{'x' * 100}")
    with pytest.raises(MountError, match="too long"):
        rundir.make_run_folder("/mnt")
    (tmp_path / "file").touch()
    monkeypatch.setenv("CACHEFS_RUN_DIR", str(tmp_path / "file"))
    with pytest.raises(MountError, match="cannot make the run folder"):
        rundir.make_run_folder("/mnt")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    if os.geteuid() == 0:
        os.chown(foreign, 65534, 65534)
        monkeypatch.setenv("CACHEFS_RUN_DIR", str(foreign))
        with pytest.raises(MountError, match="not a folder of this user"):
            rundir.make_run_folder("/mnt")


def test_base_folder_of_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CACHEFS_RUN_DIR", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert rundir.base_folder() == Path("/run/user/1000/cachefs")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert rundir.base_folder() == Path("/tmp/cachefs-1000")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert rundir.base_folder() == Path("/run/cachefs")


def test_settings() -> None:
    line = "--mountpoint /m --source=s --foreground --option noatime --option max_read=8192"
    parsed = settings.parse([*line.split(), "--start-timeout-s", "2.5", "--", "d", "--x"])
    assert (parsed.mountpoint, parsed.source, parsed.foreground) == ("/m", "s", True)
    assert parsed.option_names() == ("noatime",)
    assert (parsed.max_read, parsed.start_timeout_s) == (8192, 2.5)
    assert parsed.daemon_argv == ["d", "--x"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--mountpoint /m --source s", "usage"),
        ("--bogus 1", "unknown argument"),
        ("mountpoint /m", "unknown argument"),
        ("--source", "needs a value"),
        ("--max-read many", "not a number"),
        ("--max-read 100", "it can be 4096 to"),
        ("--start-timeout-s -1", "out of range"),
        ("--start-timeout-s nan", "out of range"),
        ("--option colour=red", "unknown mount option"),
    ],
)
def test_settings_errors(line: str, words: str) -> None:
    with pytest.raises(MountError, match=words) as caught:
        settings.parse(line.split())
    assert caught.value.exit_code == settings.USAGE_EXIT_CODE


def test_mount_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        b"23 28 0:21 / /proc rw shared:5 - proc proc rw\n"
        b"90 28 0:55 / /mnt/a\\040b\\134c rw,nosuid shared:9 master:1 - fuse.cachefs s3://x rw\n"
    )
    monkeypatch.setattr(Path, "read_bytes", lambda _: text)
    (entry,) = mounting.mounts_at("/mnt/a b\\c")
    assert (entry.device, entry.file_system_type) == ("0:55", "fuse.cachefs")
    assert mounting.is_mounted("/mnt/a b\\c")
    assert not mounting.is_mounted("/proc")
    assert not mounting.is_mounted("/mnt")


def test_unmount_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(MountError, match="not mounted"):
        mounting.unmount(str(tmp_path))
    assert not mounting.raise_read_ahead(str(tmp_path), 1024)


def test_log_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"x" * 100)
    os.close(launching.open_log(path))
    assert path.stat().st_size == 100
    os.truncate(path, launching.LONGEST_LOG_BYTES + 1)
    os.close(launching.open_log(path))
    assert path.stat().st_size == 0
    assert (tmp_path / "log.1").stat().st_size > launching.LONGEST_LOG_BYTES
    with pytest.raises(MountError, match="cannot open the log file"):
        launching.open_log(tmp_path / "absent" / "log")


def test_mount_helper_convention() -> None:
    call = mount_cachefs.parse(
        [
            "s3://b/p",
            "/mnt",
            "-sn",
            "-o",
            "rw,_netdev,nofail,x-systemd.automount,noatime,max_read=65536",
        ]
    )
    assert call == mount_cachefs.Call("s3://b/p", "/mnt", ("noatime", "max_read=65536"), False)
    expected = ["/c", "mount", "--store", "s3://b/p", "-o", "noatime,max_read=65536", "/mnt"]
    assert mount_cachefs.command("/c", call) == expected
    plain = mount_cachefs.parse(["-o", "defaults", "-f", "-t", "cachefs", "/store", "/mnt"])
    assert plain.is_fake
    assert mount_cachefs.command("/c", plain) == ["/c", "mount", "--store", "/store", "/mnt"]


@pytest.mark.parametrize("line", ["/store", "a b c", "a b -o", "a b -q", "a b -o remount,rw"])
def test_mount_helper_errors(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert mount_cachefs.main(line.split()) == mount_cachefs.USAGE_EXIT_CODE
    assert capsys.readouterr().err.startswith("mount.cachefs: ")


def test_mount_helper_with_an_empty_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in list(os.environ):
        monkeypatch.delenv(name)
    monkeypatch.setattr("sys.argv", [str(tmp_path / "mount.cachefs"), "/store", "/mnt"])
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.setattr(mount_cachefs, "DEFAULT_PATH", "/nowhere")
    assert mount_cachefs.main() == mount_cachefs.NOT_FOUND_EXIT_CODE
    program = tmp_path / "cachefs"
    program.write_text("no program")
    program.chmod(0o755)
    assert mount_cachefs.main() == mount_cachefs.NOT_FOUND_EXIT_CODE  # found, but it cannot run
    assert "cannot run" in capsys.readouterr().err
    assert mount_cachefs.main(["-f", "/store", "/mnt"]) == 0
    ran: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _, command: ran.append(command))
    mount_cachefs.main(["/store", "/mnt"])
    assert ran[-1] == [str(program), "mount", "--store", "/store", "/mnt"]
