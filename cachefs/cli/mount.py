"""Commands for a mount on this host: mount, umount, status, scrub."""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

import click

from cachefs.cli.options import json_option, store_option
from cachefs.config import Config, load_config, parse_mount_options
from cachefs.errors import CachefsError, MountError, UsageError
from cachefs.units import format_size
from mount_helper import control, mounting, rundir
from mount_helper.errors import MountError as HelperError

_ANSWER_WAIT_S = 10.0
_SCRUB_WAIT_S = 24 * 3600.0
_START_WAIT_S = 2.0
_ANSWER_DEADLINES = 2
"""The lane sends a request again when the daemon had twice a read's deadline for it."""


@click.command("mount")
@store_option
@click.option("--cache-dir", type=click.Path(path_type=Path), help="Folder of the local cache.")
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Configuration, TOML. Default: /etc/cachefs/cachefs.toml, if there is one.",
)
@click.option("-o", "options", multiple=True, help="Options, as in -o quota=20GiB,verify=read.")
@click.option("--foreground", is_flag=True, help="Stay in the foreground and log to the terminal.")
@click.argument("mountpoint", type=Path)
def mount_command(
    store: str | None,
    cache_dir: Path | None,
    config_path: Path | None,
    options: tuple[str, ...],
    foreground: bool,
    mountpoint: Path,
) -> None:
    """Show the images of a store as files below MOUNTPOINT. Returns when the mount answers."""
    config = _configuration(store, cache_dir, config_path, ",".join(options))
    arguments = _supervisor_arguments(config, mountpoint, foreground=foreground)
    sys.stdout.flush()
    os.execv(sys.executable, arguments)  # the supervisor says how it went


@click.command("umount")
@click.option("--lazy", is_flag=True, help="Take it out of the tree now; open files live on.")
@click.option("--wait", "wait_s", default=30.0, show_default=True, help="Seconds for a clean end.")
@click.argument("mountpoint", type=Path)
def umount_command(mountpoint: Path, lazy: bool, wait_s: float) -> None:
    """End a mount, and wait until its cache is written."""
    folder = run_folder(mountpoint)
    try:
        answer = control.ask(folder, {"command": "unmount", "lazy": lazy}, _ANSWER_WAIT_S)
    except OSError as error:
        _clear_dead_mount(mountpoint, error)
        return
    if not answer.get("ok"):
        raise MountError(str(answer.get("error")))
    if not lazy:
        _wait_for_end(folder, mountpoint, wait_s)


@click.command("status")
@json_option
@click.argument("mountpoint", type=Path)
def status_command(mountpoint: Path, as_json: bool) -> None:
    """Tell how a mount is doing: its daemon, its cache, its store, what it served from where."""
    folder = run_folder(mountpoint)
    status = _ask_supervisor(folder, mountpoint, {"command": "status"})
    status.pop("ok", None)
    try:
        status["daemon"] = {
            **dict(status.get("daemon") or {}),
            **ask_daemon(folder, {"command": "status"}, _ANSWER_WAIT_S),
        }
    except MountError as error:
        status["daemon"] = {**dict(status.get("daemon") or {}), "error": str(error)}
    click.echo(json.dumps(status, indent=1) if as_json else _for_people(status))


@click.command("scrub")
@json_option
@click.argument("mountpoint", type=Path)
def scrub_command(mountpoint: Path, as_json: bool) -> None:
    """Verify all that a mount's L1 holds, now and at full speed."""
    answer = ask_daemon(run_folder(mountpoint), {"command": "scrub"}, _SCRUB_WAIT_S)
    if as_json:
        click.echo(json.dumps(answer))
    else:
        click.echo(
            f"verified {answer['verified_chunks']} chunks, dropped {answer['dropped_chunks']}"
        )


def _configuration(
    store: str | None, cache_dir: Path | None, config_path: Path | None, options: str
) -> Config:
    overrides = parse_mount_options(options)
    if store:
        overrides.setdefault("store", {})["url"] = store
    if cache_dir:
        overrides.setdefault("l1", {})["dir"] = str(cache_dir)
    config = load_config(config_path, overrides)
    if not config.store.url:
        raise UsageError(
            "which store? Give --store URL, set CACHEFS_STORE, or write it into the configuration"
        )
    from cachefs.codec.compression import parse_compression  # noqa: PLC0415 - zstd, when needed
    from cachefs.store.s3_settings import S3Settings  # noqa: PLC0415 - as the next
    from cachefs.store.store import open_store  # noqa: PLC0415 - numpy and zstd only when needed

    if config.l2.codec:
        parse_compression(config.l2.codec)

    opened = open_store(config.store.url, S3Settings(**config.s3.model_dump()))
    folder = Path(config.l1.dir or _default_cache_dir() / opened.identity).absolute()
    return config.model_copy(
        update={
            "store": config.store.model_copy(update={"url": opened.url}),
            "l1": config.l1.model_copy(update={"dir": str(folder)}),
        }
    )


def _default_cache_dir() -> Path:
    if os.geteuid() == 0:
        return Path("/var/cache/cachefs/mounts")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cachefs" / "mounts"


def _supervisor_arguments(config: Config, mountpoint: Path, *, foreground: bool) -> list[str]:
    answer_deadline_s = _ANSWER_DEADLINES * config.fetch.read_deadline_s + 10
    arguments = [sys.executable, "-m", "mount_helper.supervisor"]
    arguments += ["--mountpoint", str(mountpoint), "--source", config.store.url]
    arguments += ["--read-ahead-kb", str(config.read_ahead_bytes() // 1024)]
    arguments += ["--max-read", str(config.mount.max_read_bytes)]
    arguments += ["--answer-deadline-s", str(answer_deadline_s)]
    arguments += ["--threads", str(config.lane.threads)]
    arguments += ["--disk-patience-s", str(config.lane.disk_patience_s)]
    arguments += ["--heartbeat-timeout-s", str(config.lane.heartbeat_timeout_s)]
    if config.mount.allow_other and os.geteuid() == 0:
        arguments += ["--option", "allow_other"]
    if foreground:
        arguments += ["--foreground"]
    return [
        *arguments,
        "--",
        sys.executable,
        "-m",
        "cachefs.daemon",
        "--config",
        config.model_dump_json(),
    ]


def run_folder(mountpoint: Path) -> Path:
    """Return where the sockets of a mount are."""
    try:
        return rundir.run_folder(str(mountpoint))
    except HelperError as error:
        raise MountError(str(error)) from error


def _ask_supervisor(folder: Path, mountpoint: Path, request: dict[str, Any]) -> dict[str, Any]:
    try:
        return control.ask(folder, request, _ANSWER_WAIT_S)
    except OSError as error:
        if _has_lost_its_supervisor(mountpoint):
            raise MountError(
                f"{mountpoint} has lost its supervisor: end it with 'cachefs umount {mountpoint}'"
            ) from error
        raise _not_mounted(mountpoint) from error


def _clear_dead_mount(mountpoint: Path, error: OSError) -> None:
    """Take away a mount that nobody serves any more."""
    if not _has_lost_its_supervisor(mountpoint):
        raise _not_mounted(mountpoint) from error
    try:
        mounting.unmount(rundir.canonical_mountpoint(str(mountpoint)), lazy=True)
    except HelperError as failure:
        raise MountError(str(failure)) from failure


def _has_lost_its_supervisor(mountpoint: Path) -> bool:
    """Whether this is a mount of ours that answers everything with ENOTCONN."""
    path = rundir.canonical_mountpoint(str(mountpoint))
    if not mounting.is_mounted(path):
        return False
    try:
        os.statvfs(path)  # the kernel has no answer of its own to this
    except OSError as error:
        return error.errno == errno.ENOTCONN
    return False


def _not_mounted(mountpoint: Path) -> MountError:
    return MountError(
        f"{mountpoint} is not a cachefs mount of this user: see 'mount -t fuse.cachefs'"
    )


def ask_daemon(folder: Path, request: dict[str, Any], wait_s: float) -> dict[str, Any]:
    """Return the answer of the daemon whose sockets are in `folder`.

    Raises:
        MountError: it does not answer.
        CachefsError: what it answers is an error.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(wait_s)
        try:
            _connect(connection, folder / rundir.DAEMON_SOCKET)
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("rb") as stream:
                answer: dict[str, Any] = json.loads(stream.readline())
        except (OSError, ValueError) as error:
            raise MountError("the daemon does not answer: see the log of the mount") from error
    if answer.keys() - {"exit_code"} == {"error"}:
        failure = CachefsError(str(answer["error"]))
        failure.exit_code = int(answer.get("exit_code", CachefsError.exit_code))
        raise failure
    return answer


def _connect(connection: socket.socket, path: Path) -> None:
    """Connect, also to a daemon that is just being started in place of another."""
    end_s = time.monotonic() + _START_WAIT_S
    while True:
        try:
            return connection.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            if time.monotonic() > end_s:
                raise
            time.sleep(0.05)


def _wait_for_end(folder: Path, mountpoint: Path, wait_s: float) -> None:
    give_up_s = time.monotonic() + wait_s
    while (folder / rundir.SUPERVISOR_SOCKET).exists():
        if time.monotonic() > give_up_s:
            raise MountError(
                f"{mountpoint} is unmounted, but its daemon has not ended within {wait_s:.0f} s"
            )
        time.sleep(0.02)


def _for_people(status: dict[str, Any]) -> str:
    daemon = status["daemon"]
    last_exit = daemon.get("last_exit")
    lines = [
        f"{status['mountpoint']}  {status['state']} for {status['uptime_s']:.0f} s",
        f"  store     {status['source']}",
        f"  daemon    {daemon['state']}, pid {daemon['pid']}, {daemon['restarts']} restarts",
    ]
    if last_exit and last_exit["message"]:
        lines.append(f"  its end   {last_exit['message']}")
    if "metrics" not in daemon:
        return "\n".join(
            [*lines, f"  {daemon.get('error', 'no daemon now; what is asked for waits')}"]
        )
    metrics, l1, reads = daemon["metrics"], daemon["l1"], status["lane"]["reads"]
    from_l1 = metrics["l1_hit_chunks"] + reads["hit_chunks"]
    asked = from_l1 + metrics["miss_chunks"]
    share = 100 * from_l1 / asked if asked else 0.0
    if daemon["store"]["error"]:
        lines.append(f"  store     does not answer: {daemon['store']['error']}")
    if status["lane"]["held"]:
        lines.append(f"  held      {status['lane']['held']} requests wait for the store")
    if metrics["l1_left"]:
        lines.append("  L1        is left alone: its disk fails or hangs")
    held, quota = format_size(l1["resident_bytes"]), format_size(l1["quota_bytes"])
    fetched, compressed = (format_size(metrics[f"l3_{kind}_bytes"]) for kind in ("plain", "frame"))
    rows = {
        "images": f"{daemon['store']['images']}",
        "L1": f"{held} in {l1['resident_chunks']} chunks, of {quota} in {l1['dir']}",
        "eviction": f"{metrics['evicted_chunks']} chunks, policy {l1['policy']}",
        "reads": f"{reads['hits']} by the lane, {format_size(reads['hit_bytes'])}; "
        f"{metrics['reads']} by the daemon, {format_size(metrics['read_bytes'])}, "
        f"{metrics['read_errors']} failed, {metrics['waiting_reads']} waiting, "
        f"{metrics['read_wait_us'] / 1e6:.1f} s waited in all",
        "chunks": f"{from_l1} from L1 ({share:.1f}%), "
        f"{metrics['miss_chunks']} missed, {metrics['zero_chunks']} zero",
        "fetched": f"{fetched} in {metrics['l3_requests']} requests, {compressed} compressed",
        "corrupt": f"{metrics['l1_corrupt']} in L1, {metrics['l2_corrupt']} in L2, "
        f"{metrics['l3_corrupt']} in the store",
    }
    if daemon.get("prefetch"):
        rows["ahead"] = _ahead_for_people(daemon["prefetch"], metrics)
    if daemon["l2"]:
        rows["L2"] = _l2_for_people(daemon["l2"], metrics)
    lines += [f"  {name:<10}{text}" for name, text in rows.items()]
    return "\n".join(lines)


def _ahead_for_people(prefetch: dict[str, Any], metrics: dict[str, int]) -> str:
    read = metrics["ahead_used"] + metrics["ahead_late"]
    unused = metrics["ahead_wasted"] + metrics["ahead_evicted"]
    stopped = "; the store does not answer" if prefetch["interrupted"] else ""
    share = f" ({100 * read / (read + unused):.1f}%)" if read + unused else ""
    return (
        f"{metrics['ahead_chunks']} chunks in {metrics['ahead_requests']} requests: "
        f"{read} read{share}, {metrics['ahead_late']} of them late, {unused} not, "
        f"{format_size(prefetch['unread_bytes'])} of {format_size(prefetch['budget_bytes'])} "
        f"unread{stopped}"
    )


def _l2_for_people(l2: dict[str, Any], metrics: dict[str, int]) -> str:
    state = "left alone, it does not answer" if l2["bypassed_by"] else "in use"
    trouble = "".join(f"; {l2[name]}" for name in ("error", "advice") if l2[name])
    return (
        f"{l2['url']}, {state}: {metrics['l2_chunks']} chunks from it, {metrics['l2_misses']} "
        f"missed, {metrics['l2_backfilled']} written{trouble}"
    )


COMMANDS = (mount_command, umount_command, status_command, scrub_command)
