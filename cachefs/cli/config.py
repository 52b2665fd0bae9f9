"""The command for the configuration: is it right, and what comes of it."""

from __future__ import annotations

from pathlib import Path

import click

from cachefs.cli.display import print_json, print_table
from cachefs.cli.options import examples, json_option
from cachefs.cli.verbosity import verbose_option
from cachefs.config import (
    DEFAULT_CONFIG_PATH,
    Config,
    load_explained,
    parse_mount_options,
)
from cachefs.errors import ConfigError, UsageError
from cachefs.settings.layers import PRESET_KEY
from cachefs.settings.presets import PRESETS
from cachefs.settings.problems import is_size, size_text


@click.command(
    "config",
    epilog=examples(
        "cachefs config check /etc/cachefs/cachefs.toml",
        "cachefs config show --preset edge -o quota=4GiB",
    ),
)
@click.argument("action", type=click.Choice(["check", "show"]))
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False), required=False)
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="As FILE. Default: /etc/cachefs/cachefs.toml, if there is one.",
)
@click.option("--preset", type=click.Choice(list(PRESETS)), help="Above the file's own.")
@click.option("-o", "options", multiple=True, help="Mount options, as `cachefs mount` takes them.")
@json_option
@verbose_option
def config_command(
    action: str,
    file: Path | None,
    config_path: Path | None,
    preset: str | None,
    options: tuple[str, ...],
    as_json: bool,
) -> None:
    """Check a configuration FILE, or show what a mount would take from it, and from where."""
    if file and config_path:
        raise UsageError("give the file once: as FILE or with --config")
    path = file or config_path
    overrides = parse_mount_options(",".join(options))
    if preset:
        overrides.setdefault("", {})[PRESET_KEY] = preset
    config, origins = load_explained(path, overrides)
    _check_beyond_limits(config)
    if action == "show":
        _show(config, origins, as_json=as_json)
        return
    checked = path or (DEFAULT_CONFIG_PATH if DEFAULT_CONFIG_PATH.exists() else None)
    if as_json:
        print_json({"file": str(checked) if checked else None, "preset": config.preset})
    elif checked:
        click.echo(f"{checked}: all keys and values are right (preset {config.preset})")
    else:
        click.echo(f"there is no {DEFAULT_CONFIG_PATH}: the defaults hold")


def _check_beyond_limits(config: Config) -> None:
    """Refuse what only a look at this host can tell: codecs, and files that are not there.

    Raises:
        ConfigError: there is no such file.
        UsageError: there is no such codec.
    """
    from cachefs.codec.compression import parse_compression  # noqa: PLC0415 - zstd, when needed

    if config.l2.codec:
        parse_compression(config.l2.codec)
    for section in ("s3", "l2"):
        for key, value in getattr(config, section).model_dump().items():
            if key.endswith("_file") and value and not Path(value).expanduser().is_file():
                raise ConfigError(f"configuration: {section}.{key} = '{value}': no such file")


def _show(config: Config, origins: dict[tuple[str, ...], str], *, as_json: bool) -> None:
    values = config.model_dump()
    found = [(place, _value_at(values, place), origin) for place, origin in origins.items()]
    if as_json:
        print_json(
            {".".join(place): {"value": value, "from": origin} for place, value, origin in found}
        )
        return
    rows = [(".".join(place), _text(place, value), origin) for place, value, origin in found]
    print_table(("key", "value", "from"), rows)


def _value_at(values: dict[str, object], place: tuple[str, ...]) -> object:
    found: object = values
    for name in place:
        assert isinstance(found, dict)
        found = found[name]
    return found


def _text(place: tuple[str, ...], value: object) -> str:
    """Return a value as TOML has it."""
    section = Config.model_fields[place[0]].annotation
    fields = getattr(section, "model_fields", {})
    if len(place) == 2 and value and is_size(fields[place[1]]):
        return f'"{size_text(value)}"'
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)
