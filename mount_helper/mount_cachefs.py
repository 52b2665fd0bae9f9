"""mount.cachefs: what mount(8) and /etc/fstab call for `-t cachefs`; hands over to `cachefs mount`.

    mount.cachefs URL FOLDER [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]

The environment may be empty: `cachefs` is looked for beside this program first.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
USAGE = "usage: mount.cachefs URL FOLDER [-sfnv] [-o OPTIONS]"
USAGE_EXIT_CODE = 1  # of mount(8): incorrect invocation
NOT_FOUND_EXIT_CODE = 2  # of mount(8): system error
# For mount(8), systemd or nobody: cachefs is read-only, and always nosuid and nodev.
IGNORED_OPTIONS = frozenset(
    [
        "ro",
        "rw",
        "auto",
        "noauto",
        "_netdev",
        "nofail",
        "user",
        "nouser",
        "users",
        "owner",
        "group",
        "defaults",
        "dev",
        "nodev",
        "suid",
        "nosuid",
        "exec",
        "async",
        "sync",
        "atime",
        "relatime",
        "norelatime",
        "strictatime",
        "silent",
        "loud",
        "mand",
        "nomand",
    ]
)
IGNORED_PREFIXES = ("x-", "X-", "comment=", "user=", "uhelper=", "helper=")
FLAGS = frozenset("sfnvrw")


@dataclass(frozen=True)
class Call:
    """What mount(8) asks for.

    Attributes:
        source: The URL of the store.
        folder: The mountpoint.
        options: Those that are for cachefs.
        is_fake: Do all but mount.
    """

    source: str
    folder: str
    options: tuple[str, ...]
    is_fake: bool


def parse(arguments: Sequence[str]) -> Call:
    """Return what the arguments of mount(8) ask for.

    Raises:
        ValueError: They are not in its convention.
    """
    places: list[str] = []
    options: list[str] = []
    is_fake = False
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument in {"-o", "-N", "-t"}:
            if not rest:
                raise ValueError(f"{argument} needs a value; {USAGE}")
            value = rest.pop(0)
            if argument == "-o":
                options += [option for option in value.split(",") if option]
        elif argument.startswith("-") and argument != "-":
            if unknown := set(argument[1:]) - FLAGS:
                raise ValueError(f"unknown option -{min(unknown)}; {USAGE}")
            is_fake = is_fake or "f" in argument
        else:
            places.append(argument)
    if len(places) != 2:
        raise ValueError(USAGE)
    if "remount" in options:
        raise ValueError("a cachefs mount cannot be remounted; unmount it and mount it again")
    kept = [
        option
        for option in options
        if option not in IGNORED_OPTIONS and not option.startswith(IGNORED_PREFIXES)
    ]
    return Call(places[0], places[1], tuple(kept), is_fake)


def find_cachefs() -> str | None:
    """Return the path of `cachefs`: beside this program, beside its Python, or on PATH."""
    beside = [Path(sys.argv[0]).resolve().parent, Path(sys.executable).parent]
    on_path = os.environ.get("PATH", DEFAULT_PATH).split(":")
    for folder in [*beside, *map(Path, on_path)]:
        program = folder / "cachefs"
        if program.is_file() and os.access(program, os.X_OK):
            return str(program)
    return None


def command(program: str, call: Call) -> list[str]:
    """Return the command line of `cachefs mount`."""
    options = ["-o", ",".join(call.options)] if call.options else []
    return [program, "mount", "--store", call.source, *options, call.folder]


def main(arguments: Sequence[str] | None = None) -> int:
    """Turn into `cachefs mount`; return an exit code of mount(8) if that is impossible."""
    try:
        call = parse(sys.argv[1:] if arguments is None else arguments)
    except ValueError as error:
        sys.stderr.write(f"mount.cachefs: {error}\n")
        return USAGE_EXIT_CODE
    program = find_cachefs()
    if not program:
        sys.stderr.write("mount.cachefs: cannot find the program cachefs; put it on PATH\n")
        return NOT_FOUND_EXIT_CODE
    if call.is_fake:
        return 0
    os.environ.setdefault("PATH", DEFAULT_PATH)
    try:
        os.execv(program, command(program, call))
    except OSError as error:
        sys.stderr.write(f"mount.cachefs: cannot run {program}: {error.strerror}\n")
    return NOT_FOUND_EXIT_CODE


if __name__ == "__main__":
    sys.exit(main())
