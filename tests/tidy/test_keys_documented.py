"""docs/configuration.md names every key and mount option, and no other; and what presets say."""

import re
from pathlib import Path
from typing import cast

import pytest

from cachefs.config import MOUNT_OPTIONS, Config
from cachefs.settings.presets import PRESETS, PresetName

DOCUMENT = (Path(__file__).parents[2] / "docs/configuration.md").read_text()
ROWS = [
    line.replace("`none`", "").split("|")
    for line in DOCUMENT.splitlines()
    if line.startswith("| `") and line.count("|") == 6
]
SECTIONS = [name for name in Config.model_fields if name != "preset"]


def keys_of(section: str) -> set[str]:
    return set(type(getattr(Config(), section)).model_fields)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_key_is_documented_and_no_other(section: str) -> None:
    documented = {key for row in ROWS for key in re.findall(rf"`{section}\.([a-z0-9_]+)`", row[1])}
    assert documented == keys_of(section)
    assert re.search(rf"^## \[{section}\]: ", DOCUMENT, re.MULTILINE)


def test_every_mount_option_is_documented_beside_its_key() -> None:
    for name, (section, key) in MOUNT_OPTIONS.items():
        place = f"{section}.{key}" if section else key
        [row] = [row for row in ROWS if f"`{place}`" in row[1]]
        assert name in re.findall(r"\b([a-z0-9_]+)\b", row[2]), name
    documented = {name for row in ROWS for name in re.findall(r"`([a-z0-9_]+)`", row[2])}
    assert {name for name in documented if not name.startswith("no")} <= set(MOUNT_OPTIONS)


def test_what_a_preset_says_is_documented() -> None:
    for number, name in enumerate(("edge", "regional", "global")):
        for section, settings in PRESETS[cast("PresetName", name)].items():
            for key, value in settings.items():
                row = re.search(
                    rf"^\| `{section}\.{key}` \|(.*)\|(.*)\|(.*)\|$", DOCUMENT, re.MULTILINE
                )
                assert row, (section, key)
                assert row[1 + number].strip() == _written(value)


def _written(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
