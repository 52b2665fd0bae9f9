"""The command `cachefs`: finds the command that is meant, and ends with one line and an exit code.

A command is named here with the module that has it, and loaded when it is used or asked for help,
so that `cachefs --help` needs little more than click.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

import click

from cachefs import __version__
from cachefs.cli.verbosity import is_verbose, verbose_option
from cachefs.errors import CachefsError

COMMANDS = {
    "config": ("cachefs.cli.config:config_command", "Check or show the configuration."),
    "init": ("cachefs.cli.init:init", "Make a new store."),
    "import": ("cachefs.cli.import_image:import_image", "Import a disk image or memory snapshot."),
    "images": ("cachefs.cli.images:images", "List the images of a store."),
    "info": ("cachefs.cli.images:info", "Show an image and its versions."),
    "export": ("cachefs.cli.export:export", "Write an image to a file or standard output."),
    "rename": ("cachefs.cli.names:rename", "Give an image another name."),
    "rm": ("cachefs.cli.names:remove", "Remove an image's name from the store."),
    "verify": ("cachefs.cli.verify:verify", "Read back and check every chunk of a store."),
    "mount": ("cachefs.cli.mount:mount_command", "Show a store's images as files on this host."),
    "umount": ("cachefs.cli.mount:umount_command", "End a mount."),
    "status": ("cachefs.cli.mount:status_command", "Tell how a mount is doing."),
    "model": ("cachefs.cli.model:model_command", "Show, move or forget what eviction learned."),
    "policy": ("cachefs.cli.policy:policy_command", "Show or change what L1 gives up."),
    "profile": ("cachefs.cli.profile:profile_command", "Show, move or drop what was learned."),
    "handover": ("cachefs.cli.handover:handover", "Write what a running guest uses, to move it."),
    "simulate": (
        "cachefs.cli.simulate:simulate",
        "Replay a recording through eviction policies.",
    ),
    "trace": ("cachefs.cli.trace:trace", "Record what guests read; replay and draw recordings."),
    "train": ("cachefs.cli.train:train_command", "Train the LSTM on recordings."),
    "warm": ("cachefs.cli.warm:warm", "Bring an image into a mount's local cache."),
    "scrub": ("cachefs.cli.mount:scrub_command", "Verify all that a mount's local cache holds."),
}
"""Name of each command: where it is, and its line in the list of commands."""

EXIT_CODES = {
    0: "done",
    1: "any other error",
    2: "wrong use: an option, a name or a configuration that cannot be",
    3: "no such image, version, store or file",
    4: "the store does not answer, or not in time: the same command may work later",
    5: "damaged data, or a format that this cachefs does not know",
    6: "somebody else has changed or holds it",
    7: "the local cache folder cannot be used",
    8: "the mount could not be made, found or ended",
    9: "the store refuses: credentials, rights or region are wrong",
    130: "interrupted with Ctrl-C",
}
_OTHER_ERROR, _INTERRUPTED = 1, 130

_EPILOG = "\b\nExit codes:\n" + "\n".join(
    f"  {code:<3}  {text}" for code, text in EXIT_CODES.items()
)


class CommandTable(click.Group):
    """The commands, each loaded when it is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order of COMMANDS."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, or None if there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command), cmd_name
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without loading any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


@click.group(
    cls=CommandTable, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(__version__, prog_name="cachefs", message="%(prog)s %(version)s")
@verbose_option
def cachefs() -> None:
    """VM images from object storage as plain, read-only files.

    The store of a command is given with --store or in the environment variable CACHEFS_STORE.
    """


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; errors are one line on standard error."""
    logging.basicConfig(format="cachefs: %(message)s", level=logging.WARNING, stream=sys.stderr)
    try:
        result = cachefs.main(args=arguments, prog_name="cachefs", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read the output has seen enough. Nothing is left to flush at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _OTHER_ERROR
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted", _INTERRUPTED)
    except click.UsageError as error:
        hint = f" (see '{error.ctx.command_path} --help')" if error.ctx else ""
        return _fail(f"{error.format_message()}{hint}", error.exit_code)
    except click.ClickException as error:
        return _fail(error.format_message(), error.exit_code)
    except CachefsError as error:
        return _fail(str(error), error.exit_code)
    except Exception as error:  # noqa: BLE001 - the last line of defence: one line, not a page
        what = f"{type(error).__name__}: {error}"
        return _fail(f"{what} (unexpected; -v shows where)", _OTHER_ERROR)
    return result if isinstance(result, int) else 0


def main() -> NoReturn:
    """Run the command line and end the process."""
    sys.exit(run())


def _fail(message: str, exit_code: int) -> int:
    if is_verbose():
        traceback.print_exc()
    click.echo(f"cachefs: {message}", err=True)
    return exit_code
