"""The supervisor's command line. By hand: argparse costs a megabyte in a process that stays."""

from dataclasses import dataclass, field

from mount_helper.errors import MountError

USAGE = (
    "python -m mount_helper.supervisor --mountpoint M --source URL [--foreground] "
    "[--option KEY[=VALUE]]... [--max-read N] [--read-ahead-kb N] [--start-timeout-s S] "
    "[--request-deadline-s S] [--answer-deadline-s S] [--disk-patience-s S] [--threads N] "
    "[--heartbeat-timeout-s S] [--log-file F] -- DAEMON_ARGV..."
)
USAGE_EXIT_CODE = 2
LARGEST_READ_BYTES = 1 << 20
MOST_THREADS = 16


@dataclass
class Settings:
    """What the supervisor is told.

    Attributes:
        mountpoint: Where to mount.
        source: The URL of the store, for /proc/mounts and `status`.
        foreground: Stay in this process, log to stderr.
        options: Mount options, `key` or `key=value`.
        max_read: The largest read in bytes; 0: what the sockets can carry.
        read_ahead_kb: For buffered sequential reads; 0: leave the kernel's 128.
        start_timeout_s: How long a daemon may take to get ready.
        request_deadline_s: How long a request waits for a daemon before EIO; 0: for ever.
        answer_deadline_s: How long one waits for its answer before it is sent again, and once
            more before EIO; 0: for ever.
        disk_patience_s: How long a hit waits for the disk before the daemon gets it as well.
        threads: Of the lane, that wait for requests at the same time; 0: as many as is best here.
        heartbeat_timeout_s: How long a daemon may give no sign of life; 0: for ever.
        log_file: Of supervisor and daemon; empty: `log` in the run folder.
        daemon_argv: The command that starts the daemon.
    """

    mountpoint: str = ""
    source: str = ""
    foreground: bool = False
    options: list[str] = field(default_factory=list)
    max_read: int = 0
    read_ahead_kb: int = 1024
    start_timeout_s: float = 60.0
    request_deadline_s: float = 60.0
    answer_deadline_s: float = 60.0
    disk_patience_s: float = 1.0
    threads: int = 0
    heartbeat_timeout_s: float = 0.0
    log_file: str = ""
    daemon_argv: list[str] = field(default_factory=list)

    def option_names(self) -> tuple[str, ...]:
        """Return the mount options that are names only (max_read=N has become `max_read`)."""
        return tuple(option for option in self.options if "=" not in option)


def parse(arguments: list[str]) -> Settings:
    """Return the settings of a command line.

    Raises:
        MountError: Exit code 2: an option is unknown, or its value is wrong.
    """
    settings = Settings()
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            settings.daemon_argv = rest
            break
        name, equals, value = argument.partition("=")
        key = name.removeprefix("--").replace("-", "_")
        if argument == "--foreground":
            settings.foreground = True
            continue
        if not name.startswith("--") or key not in {"option", *_KINDS}:
            raise MountError(f"unknown argument {argument!r}; usage: {USAGE}", USAGE_EXIT_CODE)
        if not equals:
            if not rest:
                raise MountError(f"{name} needs a value; usage: {USAGE}", USAGE_EXIT_CODE)
            value = rest.pop(0)
        _set(settings, key, value)
    if not (settings.mountpoint and settings.source and settings.daemon_argv):
        raise MountError(f"usage: {USAGE}", USAGE_EXIT_CODE)
    return settings


_KINDS: dict[str, type] = {
    "mountpoint": str,
    "source": str,
    "max_read": int,
    "read_ahead_kb": int,
    "start_timeout_s": float,
    "request_deadline_s": float,
    "answer_deadline_s": float,
    "disk_patience_s": float,
    "threads": int,
    "heartbeat_timeout_s": float,
    "log_file": str,
}


def _set(settings: Settings, key: str, value: str) -> None:
    if key == "option":
        name, equals, number = value.partition("=")
        if name == "max_read" and equals:
            _set(settings, "max_read", number)
        elif equals:
            raise MountError(f"unknown mount option {value!r}", USAGE_EXIT_CODE)
        else:
            settings.options.append(value)
        return
    try:
        converted = _KINDS[key](value)
    except ValueError:
        raise MountError(
            f"--{key.replace('_', '-')}: {value!r} is not a number", USAGE_EXIT_CODE
        ) from None
    if key == "max_read" and not 4096 <= converted <= LARGEST_READ_BYTES:
        raise MountError(
            f"max_read is {value}; it can be 4096 to {LARGEST_READ_BYTES}", USAGE_EXIT_CODE
        )
    if key == "threads" and not 0 <= converted <= MOST_THREADS:
        raise MountError(f"--threads is {value}; it can be 0 to {MOST_THREADS}", USAGE_EXIT_CODE)
    if key != "max_read" and not isinstance(converted, str) and not 0 <= converted < 1e9:
        raise MountError(f"--{key.replace('_', '-')}: {value} is out of range", USAGE_EXIT_CODE)
    setattr(settings, key, converted)
