from pathlib import Path

import pytest

from cachefs.errors import TierError
from cachefs.tiers.l2.credentials import Credentials


def test_a_password_is_read_each_time_and_loses_its_line_end(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("one two \r\n")
    found = Credentials("me", str(path), "NAME", {"NAME": "from outside"})
    assert found.password() == "one two "
    path.write_text("three")
    assert found.password() == "three"
    assert "three" not in repr(found)
    assert "outside" not in repr(found)


def test_without_a_file_it_comes_from_the_environment() -> None:
    assert Credentials("", "", "NAME", {"NAME": "from outside"}).password() == "from outside"
    assert Credentials("", "", "NAME", {}).password() == ""


def test_a_file_that_cannot_be_read_is_an_outage_of_the_tier(tmp_path: Path) -> None:
    with pytest.raises(TierError, match="No such file"):
        Credentials("", str(tmp_path / "gone"), "NAME", {}).password()
    (tmp_path / "binary").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(TierError, match="it is not text"):
        Credentials("", str(tmp_path / "binary"), "NAME", {}).password()
