"""The configuration: one TOML file, every limit checked, every default stated once.

Precedence: defaults, then a preset, then the file, then the environment (for S3 only), then what
the command line says.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from cachefs.errors import ConfigError, UsageError
from cachefs.model.address import parse_l2_address
from cachefs.model.image import OnOutage
from cachefs.settings.layers import PRESET_KEY, Layer, chosen_preset, merge
from cachefs.settings.presets import PRESETS, PresetName
from cachefs.settings.problems import SizeMark, describe, nearest
from cachefs.units import GIB, KIB, MIB, TIB, parse_size

DEFAULT_CONFIG_PATH = Path("/etc/cachefs/cachefs.toml")


def _size(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return parse_size(value)
    except UsageError as error:
        raise ValueError(str(error)) from error


Size = Annotated[int, BeforeValidator(_size), SizeMark()]


def _l2_url(text: str) -> str:
    try:
        if text:
            parse_l2_address(text)
    except UsageError as error:
        raise ValueError(str(error)) from error
    return text


def _absolute(path: str) -> str:
    """A daemon runs in another folder than whoever wrote the path."""
    if path and not os.path.isabs(path):
        raise ValueError("write the whole path, from / on")
    return path


AbsolutePath = Annotated[str, AfterValidator(_absolute)]
PolicyName = Literal["lru", "lfu", "arc", "s3fifo", "sieve", "2q", "ml"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StoreSection(_Section):
    """Where the images are."""

    url: str = ""
    refresh_s: float = Field(default=2.0, ge=0.1, le=3600)
    """How often the list of images is read again; a new version appears within about this time."""


class S3Section(_Section):
    """How a store at s3://bucket/prefix is reached. Credentials come from boto3's own chain."""

    endpoint: str = Field(default="", pattern=r"^(https?://[^/@?#]+/?)?$")
    """URL of the server; empty: Amazon's, or what boto3's own configuration says."""
    region: str = ""
    addressing: Literal["auto", "path", "virtual"] = "auto"
    """Where the bucket's name goes: `auto` is path with an `endpoint`, else boto3's choice."""
    profile: str = ""
    credentials_file: str = ""
    ca_file: str = ""
    sse: Literal["", "AES256", "aws:kms"] = ""
    """Server-side encryption asked for at each write; empty: what the bucket does by itself."""
    sse_kms_key: str = ""
    connections: int = Field(default=64, ge=1, le=256)
    """The most connections of one process; so many small reads are under way at once, at most."""
    requests_in_flight: int = Field(default=4, ge=1, le=64)
    """Range reads that one fetcher has under way at once; more small ones where that pays."""
    connect_timeout_s: float = Field(default=5.0, ge=0.1, le=300)
    read_timeout_s: float = Field(default=10.0, ge=0.1, le=300)
    """How long a connection may be silent."""
    request_timeout_s: float = Field(default=60.0, ge=0.1, le=3600)
    """How long an answer may take in all."""
    retries: int = Field(default=4, ge=0, le=20)
    """How often a command tries again; a mount tries until the read's deadline instead."""
    multipart_bytes: Size = Field(default=32 * MIB, ge=5 * MIB, le=5 * GIB)
    """Objects over this are uploaded in parts."""
    part_bytes: Size = Field(default=16 * MIB, ge=5 * MIB, le=5 * GIB)

    @model_validator(mode="after")
    def _has_key_only_for_kms(self) -> S3Section:
        if self.sse_kms_key and self.sse != "aws:kms":
            raise ValueError("sse_kms_key goes with sse = 'aws:kms' only")
        return self


class L1Section(_Section):
    """The cache on the local disk."""

    dir: str = ""
    """The cache folder; empty: a folder of its own for each store below /var/cache/cachefs."""
    quota_bytes: Size = Field(default=10 * GIB, ge=MIB, le=64 * TIB)
    free_floor_bytes: Size = Field(default=GIB, ge=0, le=64 * TIB)
    """What has to stay free on the cache's file system: L1 shrinks before it takes that."""
    verify: Literal["landing", "read"] = "landing"
    """`landing`: when a chunk comes in, at first use after an unclean stop, and by the scrub;
    `read`: also at every read (the lane then serves no hits)."""
    scrub_bytes_per_s: Size = Field(default=8 * MIB, ge=0, le=16 * GIB)
    """How fast the background scrub reads L1 again; 0 turns it off."""


class EvictionSection(_Section):
    """What L1 gives up for what comes in."""

    policy: PolicyName = "ml"
    share_models: bool = True
    """Whether what `ml` has learned is taken from the store by hosts that have not, and written."""


class FetchSection(_Section):
    """How misses are fetched."""

    fetchers: int = Field(default=0, ge=0, le=64)
    """Fetcher processes; 0: half of the machine's cores, at least one."""
    read_deadline_s: float = Field(default=30.0, ge=0.1, le=3600)
    """How long a read waits for its chunks before it fails with EIO."""
    on_outage: OnOutage = "fail"
    """What a read does that needs the store while that is away: `fail` with EIO at its deadline, or
    `hold`: wait until the store is back. The label `on_outage` of an image goes before this."""
    job_timeout_s: float = Field(default=60.0, ge=0.5, le=7200)
    """A fetcher that is silent for so long is ended and its work given to another."""

    def fetcher_count(self) -> int:
        """Return how many fetchers to run."""
        return self.fetchers or max(1, (os.cpu_count() or 1) // 2)


class L2Section(_Section):
    """The shared tier between L1 and the store: Redis or Memcached. None by default."""

    url: Annotated[str, AfterValidator(_l2_url)] = ""
    """Where it is; empty: there is no L2. Never with a password in it."""
    user: str = ""
    """The ACL user of Redis; empty: its default user."""
    password_file: AbsolutePath = ""
    """Read at each new connection; empty: what CACHEFS_L2_PASSWORD in the environment says."""
    sentinel_user: str = ""
    sentinel_password_file: AbsolutePath = ""
    """Of the sentinels; empty: what CACHEFS_L2_SENTINEL_PASSWORD says."""
    ca_file: AbsolutePath = ""
    """Whom to trust with TLS; empty: the system's authorities."""
    cert_file: AbsolutePath = ""
    key_file: AbsolutePath = ""
    """Who we are, where the server wants to know."""
    key_prefix: str = Field(default="cachefs:", max_length=64, pattern=r"^[!-z]*$")
    timeout_s: float = Field(default=0.05, ge=0.001, le=10)
    """How long a read waits for L2 at most, all tries included, before the store is asked."""
    ttl_s: int = Field(default=7 * 24 * 3600, ge=0, le=365 * 24 * 3600)
    """How long a frame lives there; 0: until the server evicts it."""
    retries: int = Field(default=1, ge=0, le=5)
    """Further tries within the timeout, for what failed quickly."""
    requests: int = Field(default=2, ge=1, le=16)
    """Requests (and so connections) of one fetcher that wait for an answer at once."""
    hedge: bool = False
    """Whether to ask a second time when an answer takes longer than the p95 so far."""
    breaker_failures: int = Field(default=3, ge=1, le=100)
    """So many failures in a row, and a fetcher leaves L2 alone until a probe succeeds."""
    breaker_pause_s: float = Field(default=0.5, ge=0.01, le=60)
    """Before the first probe; doubles up to `breaker_longest_pause_s`."""
    breaker_longest_pause_s: float = Field(default=10, ge=0.01, le=3600)
    backfill_queue_bytes: Size = Field(default=16 * MIB, ge=0, le=GIB)
    """Frames of one fetcher that wait to be written to L2; more is dropped. 0: L2 is only read."""
    scan_bytes: Size = Field(default=32 * MIB, ge=0, le=TIB)
    """A sequential run longer than this does not go into L2 any more; 0: everything does."""
    demote: bool = False
    """Whether a chunk that leaves L1 is brought to L2 if it is not there."""
    codec: str = Field(default="", pattern=r"^([a-z0-9_-]+(:-?\d{1,2})?)?$")
    """How frames in L2 are compressed, as in `zstd:1` or `lz4`; empty: as they are in the store."""
    min_ratio: float = Field(default=1.0, ge=1, le=100)
    """A chunk that `codec` shrinks by less than this is stored plain there."""


class PrefetchSection(_Section):
    """What is fetched before anybody asks for it."""

    enabled: bool = True
    most_bytes: Size = Field(default=256 * MIB, ge=0, le=TIB)
    """The most that is fetched ahead and not read yet; `l1_share` bounds it, too."""
    l1_share: float = Field(default=0.125, ge=0.001, le=1)
    """The part of L1's quota that chunks may take which nobody has read yet."""
    window_bytes: Size = Field(default=128 * MIB, ge=64 * KIB, le=4 * GIB)
    """The furthest that a sequential reader is run ahead of."""
    request_bytes: Size = Field(default=8 * MIB, ge=64 * KIB, le=64 * MIB)
    """The most that one request asks the store for."""
    requests: int = Field(default=12, ge=1, le=64)
    """Requests ahead of demand that one fetcher of a store on S3 has under way at once, at most."""
    bytes_per_s: Size = Field(default=0, ge=0, le=TIB)
    """The most that is asked for ahead in a second; 0: as much as the store gives."""
    arms: tuple[Literal["replay", "recurrence", "markov", "association", "lstm"], ...] = (
        "replay",
        "recurrence",
        "markov",
        "association",
    )
    """Those that learn, beside the sequential one."""
    share_profiles: bool = True
    """Whether what was learned of an image's start is taken from the store, and written there."""
    lstm_weights: str = ""
    """The file that `cachefs train` wrote; the LSTM is silent without it."""


class MountSection(_Section):
    """How the kernel sees the mount."""

    allow_other: bool = True
    """Whether other users than the one who mounts may read. Only a mount by root can allow it."""
    read_ahead_bytes: Size = Field(default=MIB, ge=0, le=64 * MIB)
    """The kernel's readahead for buffered reads of the mount (set by root only)."""
    max_read_bytes: Size = Field(default=MIB, ge=4 * KIB, le=MIB)


S3_READ_AHEAD_BYTES = 8 * MIB
"""Measured with 1, 4, 8 and 16 MiB (docs/performance.md): eight reads on their way at once."""


class LaneSection(_Section):
    """The part that owns /dev/fuse and answers reads of what is in L1 itself."""

    hits: bool = True
    """Whether it does; off, every read comes to the daemon, and all works the same, slower."""
    threads: int = Field(default=0, ge=0, le=16)
    """Threads that wait for requests at the same time; 0: as many as is best here."""
    disk_patience_s: float = Field(default=1.0, ge=0.01, le=60)
    """How long a hit waits for the cache's disk before the chunk is fetched again as well."""
    heartbeat_timeout_s: float = Field(default=10.0, ge=0, le=3600)
    """A daemon that gives no sign of life for so long is replaced; 0: never."""


class MetricsSection(_Section):
    """Prometheus metrics over HTTP."""

    listen: str = ""
    """`127.0.0.1:9465`, for example; empty: no HTTP. The same figures are in `cachefs status`."""


class Config(_Section):
    """The whole configuration."""

    preset: PresetName = "default"
    """What the other values were other than by default for, before the file was read."""
    store: StoreSection = StoreSection()
    s3: S3Section = S3Section()
    l1: L1Section = L1Section()
    l2: L2Section = L2Section()
    eviction: EvictionSection = EvictionSection()
    fetch: FetchSection = FetchSection()
    prefetch: PrefetchSection = PrefetchSection()
    mount: MountSection = MountSection()
    lane: LaneSection = LaneSection()
    metrics: MetricsSection = MetricsSection()

    def read_ahead_bytes(self) -> int:
        """Return the kernel's readahead: as told, else more where a request takes longer."""
        is_told = "read_ahead_bytes" in self.mount.model_fields_set
        is_on_s3 = self.store.url.startswith("s3://")
        return S3_READ_AHEAD_BYTES if is_on_s3 and not is_told else self.mount.read_ahead_bytes

    def fetchers_s3(self) -> S3Section:
        """Return how fetchers reach S3: a hung server costs a third of a read's time, at most.

        So there is time to ask again, and no fetcher is silent over a job for too long. They don't
        try again by themselves: the stack does, which knows who still waits.
        """
        silence_s = min(self.fetch.read_deadline_s, self.fetch.job_timeout_s) / 3
        return self.s3.model_copy(
            update={
                "connect_timeout_s": min(self.s3.connect_timeout_s, silence_s),
                "read_timeout_s": min(self.s3.read_timeout_s, silence_s),
                "request_timeout_s": min(self.s3.request_timeout_s, self.fetch.job_timeout_s / 2),
                "retries": 0,
            }
        )


MOUNT_OPTIONS: dict[str, tuple[str, str]] = {
    "cache_dir": ("l1", "dir"),
    "quota": ("l1", "quota_bytes"),
    "free_floor": ("l1", "free_floor_bytes"),
    "verify": ("l1", "verify"),
    "scrub": ("l1", "scrub_bytes_per_s"),
    "l2": ("l2", "url"),
    "l2_timeout": ("l2", "timeout_s"),
    "l2_demote": ("l2", "demote"),
    "eviction": ("eviction", "policy"),
    "fetchers": ("fetch", "fetchers"),
    "read_deadline": ("fetch", "read_deadline_s"),
    "job_timeout": ("fetch", "job_timeout_s"),
    "prefetch": ("prefetch", "enabled"),
    "prefetch_most": ("prefetch", "most_bytes"),
    "prefetch_window": ("prefetch", "window_bytes"),
    "prefetch_request": ("prefetch", "request_bytes"),
    "prefetch_requests": ("prefetch", "requests"),
    "prefetch_rate": ("prefetch", "bytes_per_s"),
    "on_outage": ("fetch", "on_outage"),
    "refresh": ("store", "refresh_s"),
    "s3_endpoint": ("s3", "endpoint"),
    "s3_region": ("s3", "region"),
    "s3_addressing": ("s3", "addressing"),
    "s3_profile": ("s3", "profile"),
    "s3_credentials": ("s3", "credentials_file"),
    "s3_ca": ("s3", "ca_file"),
    "s3_requests": ("s3", "requests_in_flight"),
    "preset": ("", "preset"),
    "allow_other": ("mount", "allow_other"),
    "read_ahead": ("mount", "read_ahead_bytes"),
    "max_read": ("mount", "max_read_bytes"),
    "lane_hits": ("lane", "hits"),
    "lane_threads": ("lane", "threads"),
    "disk_patience": ("lane", "disk_patience_s"),
    "heartbeat_timeout": ("lane", "heartbeat_timeout_s"),
    "metrics": ("metrics", "listen"),
}
"""What `-o name=value` sets; `-o name` and `-o noname` set a switch."""

_KERNEL_OPTIONS = {
    "ro",
    "rw",
    "nosuid",
    "suid",
    "nodev",
    "dev",
    "exec",
    "noexec",
    "noatime",
    "relatime",
}
"""Accepted, and without effect: an image is read-only and never a device, whatever is asked for."""


S3_VARIABLES = "CACHEFS_S3_"
"""With the name of a key of [s3] in capitals: CACHEFS_S3_ENDPOINT. Above the file."""


COMMAND_LINE = "command line"
_DEFAULT = "default"


def load_config(path: Path | None, overrides: dict[str, dict[str, object]]) -> Config:
    """Return the configuration of a file (none: the default path, if it exists) and overrides.

    Args:
        path: The file.
        overrides: By section; what has no section is in the section "".

    Raises:
        ConfigError: it cannot be read, or a key or value is wrong; the message names all of them.
    """
    return load_explained(path, overrides)[0]


def load_explained(
    path: Path | None, overrides: dict[str, dict[str, object]]
) -> tuple[Config, dict[tuple[str, ...], str]]:
    """Return the configuration, and for each key where its value comes from: a `Merged.origins`.

    Raises:
        ConfigError: as `load_config`.
    """
    layers = [*_file_layers(path), Layer("environment", {"s3": _from_environment()})]
    said = {section: values for section, values in overrides.items() if section and values}
    layers.append(Layer(COMMAND_LINE, {**said, **overrides.get("", {})}))
    preset = chosen_preset(layers)
    if isinstance(preset, str) and preset in PRESETS:
        layers.insert(0, Layer(f"preset {preset}", dict(PRESETS[cast("PresetName", preset)])))
    merged = merge(layers)
    origin = str(path or (DEFAULT_CONFIG_PATH if DEFAULT_CONFIG_PATH.exists() else COMMAND_LINE))
    config = validated(merged.values, origin)
    found: dict[tuple[str, ...], str] = {}
    found[PRESET_KEY,] = merged.origins.get((PRESET_KEY,), _DEFAULT)
    for section in Config.model_fields:
        for key in getattr(type(getattr(config, section)), "model_fields", {}):
            found[section, key] = merged.origins.get((section, key), _DEFAULT)
    return config, found


def _file_layers(path: Path | None) -> list[Layer]:
    chosen = path or (DEFAULT_CONFIG_PATH if DEFAULT_CONFIG_PATH.exists() else None)
    if chosen is None:
        return []
    try:
        return [Layer(str(chosen), tomllib.loads(chosen.read_text()))]
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration {chosen}: {error}") from error


def parse_mount_options(text: str) -> dict[str, dict[str, object]]:
    """Return the overrides that `-o text` means.

    Raises:
        ConfigError: an option that does not exist.
    """
    overrides: dict[str, dict[str, object]] = {}
    for option in filter(None, text.split(",")):
        name, equals, value = option.partition("=")
        if name in _KERNEL_OPTIONS:
            continue
        switch = "" if equals else name.removeprefix("no")
        known = MOUNT_OPTIONS.get(name) or MOUNT_OPTIONS.get(switch)
        if known is None:
            near = nearest(name, MOUNT_OPTIONS)
            raise ConfigError(
                f"mount option '{name}' does not exist{f', is {near} meant?' if near else ''}: "
                f"take one of {', '.join(sorted(MOUNT_OPTIONS))}"
            )
        section, key = known
        overrides.setdefault(section, {})[key] = value if equals else name in MOUNT_OPTIONS
    return overrides


def _from_environment() -> dict[str, object]:
    return {
        name.removeprefix(S3_VARIABLES).lower(): value
        for name, value in os.environ.items()
        if name.startswith(S3_VARIABLES)
    }


def validated(values: dict[str, Any], origin: str) -> Config:
    """Return the configuration that values are; `origin` names them in a message.

    Raises:
        ConfigError: a key or value is wrong; the message names all of them.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"configuration ({origin}): {describe(Config, error)}") from error
