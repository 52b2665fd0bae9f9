"""Options that several commands have, and the kinds of values that they take."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import click

from cachefs.cli.verbosity import verbose_option
from cachefs.errors import UsageError
from cachefs.units import parse_size

_Command = TypeVar("_Command", bound=Callable[..., Any])

STORE_VARIABLE = "CACHEFS_STORE"


class SizeType(click.ParamType[int]):
    """A size such as 64KiB, as bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the size in bytes."""
        if isinstance(value, int):
            return value
        try:
            return parse_size(value)
        except UsageError as error:
            self.fail(str(error), param, ctx)


class LabelType(click.ParamType[tuple[str, str]]):
    """A label: a key and a value."""

    name = "key=value"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        """Return key and value."""
        if isinstance(value, tuple):
            return value
        key, separator, text = value.partition("=")
        if not key or not separator or not value.isprintable():
            self.fail(f"'{value}' is not a label: write it as in os=debian", param, ctx)
        return key, text


def store_option(command: _Command) -> _Command:
    """Add --store, which may be missing because the configuration has it, and -v to a command."""
    return _store_option("store", required=False)(command)


def needed_store_option(command: _Command) -> _Command:
    """Add --store, as `store_url`, and -v to a command."""
    return _store_option("store_url", required=True)(command)


def _store_option(name: str, required: bool) -> Callable[[_Command], _Command]:
    option = click.option(
        "--store",
        name,
        metavar="URL",
        envvar=STORE_VARIABLE,
        required=required,
        show_envvar=True,
        help="The store: s3://bucket/prefix, a folder, or file:///path.",
    )
    return lambda command: verbose_option(option(command))


def compression_options(command: _Command) -> _Command:
    """Add --codec, --level and --min-ratio to a command, which gets them as `compression`."""
    from cachefs.codec.compression import Compression  # noqa: PLC0415 - zstd, when it is needed

    @functools.wraps(command)
    def with_compression(codec: str, level: int | None, min_ratio: float, **rest: Any) -> Any:
        compression = Compression(codec, level, min_ratio)
        compression.check()
        return command(compression=compression, **rest)

    for option in (
        click.option(
            "--min-ratio",
            type=click.FloatRange(1, 100),
            default=1.0,
            show_default=True,
            help="A chunk that shrinks by less than this is stored plain.",
        ),
        click.option(
            "--level",
            type=int,
            help="Of the codec: higher is smaller and slower. zstd takes 1 to 22, 3 by default.",
        ),
        click.option(
            "--codec",
            default="zstd",
            show_default=True,
            help="zstd, lz4, snappy, gzip, none, or one of this site's.",
        ),
    ):
        with_compression = option(with_compression)
    return cast("_Command", with_compression)


def examples(*lines: str) -> str:
    """Return the end of a command's help: how it is called."""
    title = "Example" if len(lines) == 1 else "Examples"
    return "\n".join(["\b", f"{title}:", *(f"  {line}" for line in lines)])


def json_option(command: _Command) -> _Command:
    """Add --json to a command."""
    return click.option(
        "--json", "as_json", is_flag=True, help="Print JSON, for programs to read."
    )(command)
