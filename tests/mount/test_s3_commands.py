"""Every command that takes a store, over S3: a server that does as S3 does, and another."""

import json
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount.mounts import Mounts, read_direct
from tests.mount.samples import KIB, mixture
from tests.s3.servers import S3Server
from tests.stores import command

pytestmark = pytest.mark.mount

DATA = mixture(3000 * KIB, 5)
WARNING = b"ignores conditional writes"


@pytest.mark.parametrize(("name", "warns"), [("s3_server", False), ("rclone_server", True)])
def test_all_commands(
    request: pytest.FixtureRequest,
    mounts: Mounts,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    warns: bool,
) -> None:
    server: S3Server = request.getfixturevalue(name)
    url = f"s3://{server.bucket}/{uuid.uuid4().hex}/prod"
    for variable, value in {**server.environment(), "CACHEFS_STORE": url}.items():
        monkeypatch.setenv(variable, value)
    source, target = tmp_path / "disk.raw", tmp_path / "out.raw"
    source.write_bytes(DATA)

    def run(*arguments: str | Path, says: Callable[[bytes], bool] = lambda said: not said) -> str:
        done = command(*arguments)
        assert (done.returncode, says(done.stderr)) == (0, True), done.stderr
        return done.stdout.decode()

    def may_warn(said: bytes) -> bool:
        return (WARNING in said) == warns and said.count(b"\n") == warns

    missing = command("images")
    assert (missing.returncode, b"cachefs init" in missing.stderr) == (3, True)
    run("init", url, says=may_warn)
    assert command("init", url).returncode == 6
    catalog = ("--catalog-dir", tmp_path / "catalog")
    for version in (1, 2):
        report = json.loads(run("import", *catalog, "--json", source, "a/b", says=may_warn))
        assert (report["version"], report["new_bytes"] > 0) == (version, version == 1)
    assert "a/b" in run("images")
    assert f"a/b in {url}" in run("info", "a/b")
    assert "no problems" in run("verify")
    run("export", "a/b", target)
    assert (target.read_bytes() == DATA) is True
    run("rename", "a/b", "c", says=may_warn)
    mount = mounts(url)
    mount.start("fetchers=2")
    assert (read_direct(mount / "c") == DATA) is True
    assert mount.metrics()["l3_requests"] <= 12
    run("rm", "--yes", "c")
    assert json.loads(run("images", "--json")) == []
