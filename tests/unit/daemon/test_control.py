import json
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from cachefs.daemon import control as module
from cachefs.daemon.control import serve_control
from cachefs.errors import StoreUnavailableError
from tests.caches import wait_until


async def echo(request: dict[str, Any]) -> dict[str, Any]:
    return {"heard": request.get("text")}


async def unavailable(_: dict[str, Any]) -> dict[str, Any]:
    raise StoreUnavailableError("the store is away")


async def broken(_: dict[str, Any]) -> dict[str, Any]:
    raise ZeroDivisionError("oh")


async def slow(_: dict[str, Any]) -> dict[str, Any]:
    await trio.sleep_forever()
    raise AssertionError


COMMANDS: dict[str, module.Command] = {
    "echo": echo,
    "unavailable": unavailable,
    "broken": broken,
    "slow": slow,
}


@asynccontextmanager
async def served(path: Path) -> AsyncIterator[Path]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_control, path, COMMANDS)
        await wait_until(path.exists)
        await trio.testing.wait_all_tasks_blocked()
        yield path
        nursery.cancel_scope.cancel()


async def ask(path: Path, line: bytes) -> dict[str, Any]:
    stream = await trio.open_unix_socket(str(path))
    async with stream:
        await stream.send_all(line)
        answer = b""
        while not answer.endswith(b"\n"):
            part = await stream.receive_some()
            if not part:
                break
            answer += part
    found: dict[str, Any] = json.loads(answer)
    return found


async def test_a_command_is_answered(tmp_path: Path) -> None:
    async with served(tmp_path / "socket") as path:
        request = {"command": "echo", "text": "ü" * 10_000}
        assert await ask(path, json.dumps(request).encode() + b"\n") == {"heard": "ü" * 10_000}


async def test_the_socket_is_its_owners_and_goes_with_the_daemon(tmp_path: Path) -> None:
    (tmp_path / "socket").write_text("of a daemon that was killed")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_control, tmp_path / "socket", COMMANDS)
        await wait_until((tmp_path / "socket").is_socket)
        mode = (tmp_path / "socket").stat().st_mode
        assert stat.S_IMODE(mode) == 0o600
        nursery.cancel_scope.cancel()
    assert not (tmp_path / "socket").exists()


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"status\n",
        b"[]\n",
        b"3\n",
        b"{}\n",
        b'{"command": "reboot"}\n',
        b'{"command": []}\n',
        b'{"command": null}\n',
        b"\xff\xfe\n",
        b"[" * 60_000 + b"\n",
        b'{"command":' * 5_000 + b"\n",
    ],
)
async def test_a_bad_request_is_told_what_there_is(tmp_path: Path, line: bytes) -> None:
    async with served(tmp_path / "socket") as path:
        answer = await ask(path, line)
        assert "not a command" in answer["error"]
        assert "broken, echo, slow, unavailable" in answer["error"]
        assert len(answer["error"]) < 1000
        assert await ask(path, b'{"command": "echo"}\n') == {"heard": None}


async def test_a_line_without_an_end_is_bounded(tmp_path: Path) -> None:
    async with served(tmp_path / "socket") as path:
        stream = await trio.open_unix_socket(str(path))
        async with stream:
            with pytest.raises(trio.BrokenResourceError):
                await stream.send_all(b"x" * 10_000_000)
        assert await ask(path, b'{"command": "echo"}\n') == {"heard": None}


async def test_errors_of_commands_are_answers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(tmp_path / "socket") as path:
        told = await ask(path, b'{"command": "unavailable"}\n')
        assert told == {"error": "the store is away", "exit_code": 4}
        assert await ask(path, b'{"command": "broken"}\n') == {"error": "ZeroDivisionError: oh"}
        assert "command broken failed" in caplog.messages


async def test_one_that_waits_holds_up_no_other(tmp_path: Path) -> None:
    async with served(tmp_path / "socket") as path, trio.open_nursery() as nursery:
        nursery.start_soon(ask, path, b'{"command": "slow"}\n')
        silent = await trio.open_unix_socket(str(path))
        gone = await trio.open_unix_socket(str(path))
        await gone.send_all(b'{"command": "echo"}\n')
        await gone.aclose()
        assert await ask(path, b'{"command": "echo"}\n') == {"heard": None}
        await silent.aclose()
        nursery.cancel_scope.cancel()


async def test_one_that_says_nothing_is_left(tmp_path: Path, mock_clock: MockClock) -> None:
    path = tmp_path / "socket"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_control, path, COMMANDS)
        await trio.testing.wait_all_tasks_blocked(0.05)
        stream = await trio.open_unix_socket(str(path))
        await trio.testing.wait_all_tasks_blocked(0.05)
        mock_clock.jump(module._IDLE_S + 1)
        assert await stream.receive_some() == b""
        await stream.aclose()
        nursery.cancel_scope.cancel()


async def test_a_request_without_an_end_of_line_is_understood(tmp_path: Path) -> None:
    async with served(tmp_path / "socket") as path:
        stream = await trio.open_unix_socket(str(path))
        async with stream:
            await stream.send_all(b'{"command": "echo", "text": 1}')
            stream.socket.shutdown(1)
            assert json.loads(await stream.receive_some()) == {"heard": 1}
