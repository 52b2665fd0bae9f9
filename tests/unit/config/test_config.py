import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefs import config as module
from cachefs.config import Config, load_config, parse_mount_options
from cachefs.errors import ConfigError
from cachefs.units import GIB, KIB, MIB


@pytest.fixture(autouse=True)
def no_default_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "default.toml"
    monkeypatch.setattr(module, "DEFAULT_CONFIG_PATH", path)
    return path


def test_without_a_file_all_is_default() -> None:
    assert load_config(None, {}) == Config()


def test_the_default_file_is_read_if_it_exists(no_default_file: Path) -> None:
    no_default_file.write_text('[l1]\nquota_bytes = "3GiB"\n')
    assert load_config(None, {}).l1.quota_bytes == 3 * GIB


def test_the_command_line_is_above_the_file(tmp_path: Path) -> None:
    path = tmp_path / "cachefs.toml"
    path.write_text('[l1]\nquota_bytes = "3GiB"\nverify = "read"\n[fetch]\nfetchers = 3\n')
    found = load_config(path, {"l1": {"quota_bytes": "5MiB"}, "store": {"url": "/s"}, "mount": {}})
    assert found.l1.quota_bytes == 5 * MIB
    assert (found.l1.verify, found.fetch.fetchers, found.store.url) == ("read", 3, "/s")


@pytest.mark.parametrize(
    ("text", "hints"),
    [
        ("[l1]\nquota_bytes = 5", ["l1.quota_bytes", "5", "greater than or equal to 1048576"]),
        ('[l1]\nquota_bytes = "65TiB"', ["l1.quota_bytes", "less than or equal to 70368744177664"]),
        ('[l1]\nquota_bytes = "many"', ["l1.quota_bytes", "many", "64KiB"]),
        ("[l1]\nquota_bytes = 1.5", ["l1.quota_bytes", "1.5", "integer"]),
        ("[l1]\nquota_bytes = []", ["l1.quota_bytes", "[]", "integer"]),
        ("[l1]\nfree_floor_bytes = -1", ["l1.free_floor_bytes", "-1", "equal to 0"]),
        ('[l1]\nverify = "never"', ["l1.verify", "never", "'landing' or 'read'"]),
        ("[l1]\nscrub_bytes_per_s = -1", ["l1.scrub_bytes_per_s", "equal to 0"]),
        ("[fetch]\nfetchers = 65", ["fetch.fetchers", "65", "less than or equal to 64"]),
        ("[fetch]\nread_deadline_s = 0", ["fetch.read_deadline_s", "equal to 0.1"]),
        ("[fetch]\nread_deadline_s = nan", ["fetch.read_deadline_s", "nan"]),
        ("[fetch]\nread_deadline_s = inf", ["fetch.read_deadline_s", "inf", "3600"]),
        ("[fetch]\njob_timeout_s = 7201", ["fetch.job_timeout_s", "7200"]),
        ("[store]\nrefresh_s = 0", ["store.refresh_s", "equal to 0.1"]),
        ("[l2]\ntimeout_s = 0", ["l2.timeout_s", "0.001"]),
        ("[l2]\nretries = 6", ["l2.retries", "equal to 5"]),
        ('[l2]\nurl = "http://a"', ["l2.url", "redis, rediss"]),
        ('[l2]\npassword_file = "here"', ["l2.password_file", "from / on"]),
        ('[l2]\nkey_prefix = "a b"', ["l2.key_prefix", "a b"]),
        ('[l2]\ncodec = "zstd:fast"', ["l2.codec", "zstd:fast"]),
        ('[l2]\npassword = "x"', ["l2.password", "not permitted"]),
        ("[mount]\nmax_read_bytes = 4095", ["mount.max_read_bytes", "4096"]),
        ("[mount]\nmax_read_bytes = 1048577", ["mount.max_read_bytes", "1048576"]),
        ('[mount]\nallow_other = "maybe"', ["mount.allow_other", "maybe", "boolean"]),
        ("[l1]\nquota = 5", ["l1.quota", "5", "not permitted"]),
        ("[cache]\nquota = 5", ["cache", "not permitted"]),
        ("l1 = 5", ["l1", "5"]),
    ],
)
def test_a_wrong_value_is_named_with_its_key_and_limit(
    tmp_path: Path, text: str, hints: list[str]
) -> None:
    path = tmp_path / "cachefs.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path, {"l1": {"dir": "/c"}})
    for hint in (*hints, str(path)):
        assert hint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_wrong_values_are_named_at_once() -> None:
    with pytest.raises(ConfigError, match=r"command line.*quota_bytes.*fetchers"):
        load_config(None, {"l1": {"quota_bytes": 1}, "fetch": {"fetchers": -1}})


@pytest.mark.parametrize("data", [b"[l1\nquota", b"\xff\xfe", b"[l1]\n[l1]\n"])
def test_a_file_that_is_no_toml_is_named(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "cachefs.toml"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=str(path)):
        load_config(path, {})


def test_a_file_that_was_asked_for_has_to_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        load_config(tmp_path / "nowhere.toml", {})


def test_mount_options_are_the_keys_of_sections() -> None:
    text = "quota=3GiB,ro,verify=read,noallow_other,nosuid,,fetchers=2,max_read=64KiB,refresh=1.5"
    found = load_config(None, parse_mount_options(text))
    assert found.l1.quota_bytes == 3 * GIB
    assert found.l1.verify == "read"
    assert not found.mount.allow_other
    assert (found.fetch.fetchers, found.mount.max_read_bytes) == (2, 64 * KIB)
    assert found.store.refresh_s == 1.5


def test_every_mount_option_sets_a_key_that_exists() -> None:
    for section, key in module.MOUNT_OPTIONS.values():
        assert key in type(getattr(Config(), section)).model_fields


@pytest.mark.parametrize("text", ["qouta=1", "noquoat", "=3", "no", "direct_io"])
def test_an_unknown_mount_option_is_refused_with_those_that_exist(text: str) -> None:
    with pytest.raises(ConfigError, match=r"does not exist.*quota"):
        parse_mount_options(f"ro,{text}")


@pytest.mark.parametrize("text", ["noquota=1GiB", "noallow_other=true"])
def test_a_refused_switch_has_no_value(text: str) -> None:
    with pytest.raises(ConfigError, match=text.partition("=")[0]):
        parse_mount_options(text)


@pytest.mark.parametrize("text", ["quota", "noquota", "verify", "fetchers=many", "quota="])
def test_an_option_of_the_wrong_kind_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=text.removeprefix("no").partition("=")[0]):
        load_config(None, parse_mount_options(text))


def test_fetchers_follow_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {None: 1, 1: 1, 2: 1, 9: 4}
    for cores, fetchers in counts.items():
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        assert Config().fetch.fetcher_count() == fetchers
    assert load_config(None, {"fetch": {"fetchers": 5}}).fetch.fetcher_count() == 5


@given(st.floats(min_value=0.1, max_value=3600))
def test_a_configuration_survives_its_way_to_the_daemon(refresh_s: float) -> None:
    found = load_config(None, {"store": {"refresh_s": refresh_s}})
    again = Config.model_validate_json(found.model_dump_json())
    assert again == found
    assert math.isclose(again.store.refresh_s, refresh_s)


@pytest.mark.parametrize("host", ["a", "user:pass@a/1", "a,b"])
def test_no_message_repeats_a_password(tmp_path: Path, host: str) -> None:
    path = tmp_path / "cachefs.toml"
    path.write_text(f'[l2]\nurl = "redis://me:hidden@{host}"\n')
    with pytest.raises(ConfigError, match="password_file") as caught:
        load_config(path, {})
    assert "hidden" not in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        load_config(None, parse_mount_options("l2=redis://me:hidden@" + host.replace(",", "")))
    assert "hidden" not in str(caught.value)
