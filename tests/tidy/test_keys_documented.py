"""docs/configuration.md names every key and mount option of L2, and no other."""

import re
from pathlib import Path

from cachefs.config import MOUNT_OPTIONS, L2Section

DOCUMENT = (Path(__file__).parents[2] / "docs/configuration.md").read_text()
ROWS = [line.split("|") for line in DOCUMENT.splitlines() if line.startswith("| `l2.")]


def test_every_key_is_documented_and_no_other() -> None:
    documented = {key for row in ROWS for key in re.findall(r"`l2\.([a-z0-9_]+)`", row[1])}
    assert documented == set(L2Section.model_fields)


def test_every_mount_option_is_documented() -> None:
    documented = {name for row in ROWS for name in re.findall(r"`([a-z0-9_]+)`", row[2])}
    assert documented == {name for name, place in MOUNT_OPTIONS.items() if place[0] == "l2"}
