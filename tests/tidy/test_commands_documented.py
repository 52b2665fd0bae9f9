"""docs/commands.md names every command with its arguments and options, and every exit code."""

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from cachefs.cli.main import COMMANDS, EXIT_CODES, cachefs

DOCUMENT = (Path(__file__).parents[2] / "docs/commands.md").read_text()
COMMON = {"--help", "-h", "--verbose", "-v"}


def command_of(name: str) -> click.Command:
    command = cachefs.get_command(click.Context(cachefs), name)
    assert command is not None
    return command


def section_of(name: str) -> str:
    found = re.search(rf"^### `cachefs {name}\b.*?(?=^##|\Z)", DOCUMENT, re.DOTALL | re.MULTILINE)
    assert found, f"docs/commands.md has no section for {name}"
    return found[0]


def parameters_of(command: click.Command) -> Iterator[click.Parameter]:
    yield from command.params
    if isinstance(command, click.Group):
        for name, part in command.commands.items():
            if name not in COMMANDS:  # one that is a command by itself has a section of its own
                yield from parameters_of(part)


def options_of(command: click.Command) -> Iterator[str]:
    for parameter in parameters_of(command):
        if isinstance(parameter, click.Option):
            yield next(
                (name for name in parameter.opts if name.startswith("--")), parameter.opts[0]
            )


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_documented(name: str) -> None:
    command, section = command_of(name), section_of(name)
    for option in set(options_of(command)) - COMMON:
        assert re.search(rf"`{option}\b", section), f"{name} {option} is not documented"
    for argument in (entry for entry in command.params if isinstance(entry, click.Argument)):
        assert argument.make_metavar(click.Context(command)) in section.splitlines()[0]
    documented = set(re.findall(r"`(-[-a-z]+)", section))
    known = {name for parameter in parameters_of(command) for name in parameter.opts}
    assert documented <= known, f"{name} has no {documented - known}"


def test_no_command_is_documented_that_is_not_there() -> None:
    assert set(re.findall(r"^### `cachefs ([a-z]+)", DOCUMENT, re.MULTILINE)) == set(COMMANDS)


def test_every_exit_code_is_documented() -> None:
    found = {int(code) for code in re.findall(r"^\| (\d+) \|", DOCUMENT, re.MULTILINE)}
    assert found == set(EXIT_CODES)


def test_options_for_all_commands_are_documented() -> None:
    for option in ("-v", "--verbose", "--version", "CACHEFS_STORE"):
        assert option in DOCUMENT
