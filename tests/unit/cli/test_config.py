"""`cachefs config`: what is wrong with a file, and what comes of it."""

import json
from pathlib import Path

import pytest

from cachefs import config as module
from cachefs.config import Config, load_config
from tests.stores import command


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "cachefs.toml"


def test_a_right_file(file: Path) -> None:
    file.write_text('preset = "regional"\n[l1]\nquota_bytes = "3GiB"\n')
    for option in ([], ["--config"]):
        done = command("config", "check", *option, file)
        assert (done.returncode, done.stderr) == (0, b"")
        assert f"{file}: all keys and values are right (preset regional)" in done.stdout.decode()
    done = command("config", "check", "--json", file)
    assert json.loads(done.stdout) == {"file": str(file), "preset": "regional"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[l1]\nqouta_bytes = 5", "l1.qouta_bytes = 5: there is no such key; is l1.quota_bytes"),
        ("[fetch]\nfetchers = 65", "fetch.fetchers = 65: it can be a whole number, 0 to 64"),
        ('[l2]\ncodec = "nosuch"', "nosuch"),
        ('[l2]\npassword_file = "/no/such"', "l2.password_file = '/no/such': no such file"),
        ("[l1", "cannot read the configuration"),
    ],
)
def test_a_wrong_file(file: Path, text: str, said: str) -> None:
    file.write_text(text)
    done = command("config", "check", file)
    assert (done.returncode, done.stdout) == (2, b"")
    assert said in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1


def test_what_a_mount_would_take_and_from_where(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DEFAULT_CONFIG_PATH", file)
    file.write_text('preset = "edge"\n[l1]\nquota_bytes = "3GiB"\n')
    done = command("config", "show", "--json", "--config", file, "-o", "fetchers=3,noallow_other")
    found = json.loads(done.stdout)
    assert found["l1.quota_bytes"] == {"value": 3 << 30, "from": str(file)}
    assert found["fetch.fetchers"] == {"value": 3, "from": "command line"}
    assert found["mount.allow_other"] == {"value": False, "from": "command line"}
    assert found["l2.timeout_s"] == {"value": 0.02, "from": "preset edge"}
    assert found["l2.retries"] == {"value": 1, "from": "default"}
    assert found["preset"] == {"value": "edge", "from": str(file)}
    sections: dict[str, dict[str, object]] = {}
    for place, entry in found.items():
        section, _, key = place.rpartition(".")
        sections.setdefault(section, {})[key] = entry["value"]
    whole = Config.model_validate({**sections.pop(""), **sections})
    assert whole == load_config(file, {"fetch": {"fetchers": 3}, "mount": {"allow_other": False}})

    done = command("config", "show", "--preset", "global", file)
    rows = {line.split()[0]: line.split() for line in done.stdout.decode().splitlines()}
    assert rows["preset"][1:] == ['"global"', "command", "line"]
    assert rows["s3.connections"][1:] == ["128", "preset", "global"]
    assert rows["l1.quota_bytes"][1:] == ['"3GiB"', str(file)]
    assert rows["mount.allow_other"][1:] == ["true", "default"]


def test_one_file_is_enough(file: Path) -> None:
    file.write_text("")
    done = command("config", "show", file, "--config", file)
    assert (done.returncode, b"once" in done.stderr) == (2, True)
