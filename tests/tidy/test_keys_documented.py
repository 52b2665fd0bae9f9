"""docs/configuration.md names every key and mount option of L2 and of prefetch, and no other."""

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from cachefs.config import MOUNT_OPTIONS, L2Section, PrefetchSection

DOCUMENT = (Path(__file__).parents[2] / "docs/configuration.md").read_text()
SECTIONS: dict[str, type[BaseModel]] = {"l2": L2Section, "prefetch": PrefetchSection}


def rows(section: str) -> list[list[str]]:
    lines = DOCUMENT.splitlines()
    return [line.split("|") for line in lines if line.startswith(f"| `{section}.")]


@pytest.mark.parametrize("section", SECTIONS)
def test_every_key_is_documented_and_no_other(section: str) -> None:
    pattern = rf"`{section}\.([a-z0-9_]+)`"
    documented = {key for row in rows(section) for key in re.findall(pattern, row[1])}
    assert documented == set(SECTIONS[section].model_fields)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_mount_option_is_documented(section: str) -> None:
    documented = {name for row in rows(section) for name in re.findall(r"`([a-z0-9_]+)`", row[2])}
    known = {name for name, place in MOUNT_OPTIONS.items() if place[0] == section}
    assert documented - {f"no{name}" for name in known} == known
