import json
from pathlib import Path

import click
import pytest

from cachefs.cli import main
from cachefs.cli.import_image import default_catalog_folder, summary
from cachefs.cli.main import COMMANDS, EXIT_CODES, cachefs, run
from cachefs.errors import CachefsError
from cachefs.ingest.report import ImportReport


def errors() -> list[type[CachefsError]]:
    found, rest = [], [CachefsError]
    while rest:
        error = rest.pop()
        found.append(error)
        rest += error.__subclasses__()
    return found


def test_every_exit_code_is_explained() -> None:
    assert {error.exit_code for error in errors()} <= set(EXIT_CODES)


def test_the_list_of_commands_says_what_each_command_says() -> None:
    context = click.Context(cachefs)
    for name in COMMANDS:
        command = cachefs.get_command(context, name)
        assert command is not None
        assert command.name == name
        assert command.help
    assert cachefs.get_command(context, "nothing") is None


@pytest.mark.parametrize(
    ("error", "exit_code", "said"),
    [
        (CachefsError("it broke"), 1, "cachefs: it broke\n"),
        (KeyError("x"), 1, "cachefs: KeyError: 'x' (unexpected; -v shows where)\n"),
        (KeyboardInterrupt(), 130, "cachefs: interrupted\n"),
        (click.ClickException("wrong"), 1, "cachefs: wrong\n"),
    ],
)
def test_any_error_is_one_line(
    error: BaseException,
    exit_code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    @click.command()
    def fail() -> None:
        raise error

    monkeypatch.setattr(main.CommandTable, "get_command", lambda *_: fail)
    assert run(["fail"]) == exit_code
    assert capsys.readouterr().err.lstrip("\n") == said


def test_the_end_of_the_process_has_the_exit_code() -> None:
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 2


def test_the_catalog_lies_in_the_users_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_catalog_folder("abc") == tmp_path / "cachefs" / "abc"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert default_catalog_folder("abc") == Path("/var/cache/cachefs/abc")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert default_catalog_folder("abc") == Path.home() / ".cache/cachefs/abc"


def test_an_empty_image_has_a_summary() -> None:
    report = ImportReport("a", 4096)
    assert "a version 0: 0.0 s, 0 MB/s" in summary(report)
    assert json.loads(json.dumps(report.to_json()))["compression_ratio"] is None
