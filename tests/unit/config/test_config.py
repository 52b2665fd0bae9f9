import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefs import config as module
from cachefs.config import Config, load_config, load_explained, parse_mount_options
from cachefs.errors import ConfigError
from cachefs.settings.presets import PRESETS, PresetName
from cachefs.settings.problems import allowed
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
        ("[l1]\nquota_bytes = 5", ["l1.quota_bytes = 5: ", "a size, 1MiB to 64TiB"]),
        ('[l1]\nquota_bytes = "65TiB"', ["l1.quota_bytes", "1MiB to 64TiB"]),
        ('[l1]\nquota_bytes = "many"', ["l1.quota_bytes", "many", "64KiB"]),
        ("[l1]\nquota_bytes = 1.5", ["l1.quota_bytes", "1.5", "integer", "1MiB to 64TiB"]),
        ("[l1]\nquota_bytes = []", ["l1.quota_bytes", "[]", "a size"]),
        ("[l1]\nfree_floor_bytes = -1", ["l1.free_floor_bytes", "-1", "0 to 64TiB"]),
        ('[l1]\nverify = "never"', ["l1.verify", "never", "'landing' or 'read'"]),
        ("[l1]\nscrub_bytes_per_s = -1", ["l1.scrub_bytes_per_s", "0 to 16GiB"]),
        ("[fetch]\nfetchers = 65", ["fetch.fetchers = 65: ", "a whole number, 0 to 64"]),
        ("[fetch]\nread_deadline_s = 0", ["fetch.read_deadline_s", "a number, 0.1 to 3600"]),
        ("[fetch]\nread_deadline_s = nan", ["fetch.read_deadline_s", "nan"]),
        ("[fetch]\nread_deadline_s = inf", ["fetch.read_deadline_s", "inf", "3600"]),
        ("[fetch]\njob_timeout_s = 7201", ["fetch.job_timeout_s", "7200"]),
        ("[store]\nrefresh_s = 0", ["store.refresh_s", "0.1 to 3600"]),
        ("[l2]\ntimeout_s = 0", ["l2.timeout_s", "0.001"]),
        ("[l2]\nretries = 6", ["l2.retries", "0 to 5"]),
        ('[l2]\nurl = "http://a"', ["l2.url", "redis, rediss"]),
        ('[l2]\npassword_file = "here"', ["l2.password_file", "from / on"]),
        ('[l2]\nkey_prefix = "a b"', ["l2.key_prefix", "a b"]),
        ('[l2]\ncodec = "zstd:fast"', ["l2.codec", "zstd:fast"]),
        ('[l2]\npassword = "x"', ["l2.password = ***", "l2.password_file meant"]),
        ("[mount]\nmax_read_bytes = 4095", ["mount.max_read_bytes", "4KiB to 1MiB"]),
        ("[mount]\nmax_read_bytes = 1048577", ["mount.max_read_bytes", "4KiB to 1MiB"]),
        ('[mount]\nallow_other = "maybe"', ["mount.allow_other", "maybe", "true or false"]),
        ("[l1]\nquota = 5", ["l1.quota = 5", "no such key", "l1.quota_bytes meant"]),
        ("[cache]\nquota = 5", ["cache", "no such key"]),
        ("l1 = 5", ["l1", "5"]),
        ("fetsh = 5", ["fetsh = 5", "no such key", "fetch meant"]),
        ("quota_bytes = 5", ["quota_bytes", "no such key", "l1.quota_bytes meant"]),
        ("[l2]\nquota_bytes = 5", ["l2.quota_bytes", "l1.quota_bytes meant"]),
        ("[fetch]\nread_deadlin = 5", ["fetch.read_deadlin", "fetch.read_deadline_s meant"]),
        ('[fetch]\non_outage = "wait"', ["fetch.on_outage", "'fail' or 'hold'"]),
        ('[eviction]\npolicy = "fifo"', ["eviction.policy", "'2q' or 'ml'"]),
        ('preset = "huge"', ["preset = 'huge'", "'default' or 'edge' or 'regional' or 'global'"]),
        ("[prefetch]\nl1_share = 0", ["prefetch.l1_share", "a number, 0.001 to 1"]),
        ("preset = 5", ["preset = 5", "'edge'"]),
        ("preset = []", ["preset = []", "'edge'"]),
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


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_below_the_file_and_says_nothing_that_is_default(
    tmp_path: Path, name: PresetName
) -> None:
    path = tmp_path / "cachefs.toml"
    path.write_text(f'preset = "{name}"\n[l1]\nquota_bytes = "3GiB"\n')
    found, origins = load_explained(path, {"fetch": {"fetchers": 3}})
    assert (found.preset, found.l1.quota_bytes, found.fetch.fetchers) == (name, 3 * GIB, 3)
    assert origins["preset",] == origins["l1", "quota_bytes"] == str(path)
    assert origins["fetch", "fetchers"] == "command line"
    assert origins["lane", "threads"] == "default"
    plain = Config()
    for section, settings in PRESETS[name].items():
        for key in settings:
            if (section, key) != ("l1", "quota_bytes"):
                assert origins[section, key] == f"preset {name}"
                value = getattr(getattr(found, section), key)
                assert value != getattr(getattr(plain, section), key), (section, key)


def test_a_preset_of_the_mount_options_is_above_that_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "cachefs.toml"
    path.write_text('preset = "edge"\n')
    assert load_config(path, {}).l1.quota_bytes == 2 * GIB
    found = load_config(path, parse_mount_options("preset=global,quota=5GiB"))
    assert (found.preset, found.l1.quota_bytes) == ("global", 5 * GIB)
    assert found.lane == Config().lane
    # The daemon gets all values, and no preset is put below them once more.
    assert Config.model_validate_json(found.model_dump_json()) == found


def test_the_environment_is_told_as_an_origin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHEFS_S3_REGION", "mars")
    found, origins = load_explained(None, {})
    assert (found.s3.region, origins["s3", "region"]) == ("mars", "environment")


def test_every_number_has_limits_that_a_message_can_name() -> None:
    for section in Config.model_fields:
        for key, field in getattr(type(getattr(Config(), section)), "model_fields", {}).items():
            if field.annotation in {int, float}:
                assert " to " in allowed(field), (section, key)


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
        assert key in type(getattr(Config(), section) if section else Config()).model_fields


@pytest.mark.parametrize("text", ["qouta=1", "noquoat", "=3", "no", "direct_io"])
def test_an_unknown_mount_option_is_refused_with_those_that_exist(text: str) -> None:
    with pytest.raises(ConfigError, match=r"does not exist.*quota"):
        parse_mount_options(f"ro,{text}")


def test_a_misspelt_mount_option_is_told_what_is_near() -> None:
    with pytest.raises(ConfigError, match="is read_deadline meant"):
        parse_mount_options("read_dedline=3")


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
