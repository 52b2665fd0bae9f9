"""The option -v, which may stand before or behind the name of a command."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])
_log = logging.getLogger("cachefs")


def _set_level(_context: click.Context, _parameter: click.Parameter, verbose: bool) -> None:
    if verbose:
        _log.setLevel(logging.DEBUG)


def verbose_option(command: _Command) -> _Command:
    """Add -v to a command."""
    return click.option(
        "-v",
        "--verbose",
        is_flag=True,
        expose_value=False,
        callback=_set_level,
        help="Say what is done, and show where an error came from.",
    )(command)


def is_verbose() -> bool:
    """Return whether -v was given."""
    return _log.level == logging.DEBUG
