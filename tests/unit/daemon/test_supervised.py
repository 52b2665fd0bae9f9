import json
import os
import socket
from collections.abc import Iterator

import pytest
import trio

from cachefs.daemon.supervised import Supervisor


@pytest.fixture
def ends() -> Iterator[tuple[Supervisor, socket.socket]]:
    """Return the daemon's end of the talk, and the supervisor's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    supervisor = Supervisor(ours.detach())
    with theirs:
        yield supervisor, theirs
    supervisor._socket.close()


def test_messages_say_how_the_start_went(ends: tuple[Supervisor, socket.socket]) -> None:
    supervisor, other = ends
    supervisor.ready()
    supervisor.failed("the cache folder is in use", 6)
    assert json.loads(other.recv(1000))["event"] == "ready"
    assert json.loads(other.recv(1000)) == {
        "event": "failed",
        "message": "the cache folder is in use",
        "exit_code": 6,
    }


def test_a_supervisor_that_is_gone_is_told_nothing(
    ends: tuple[Supervisor, socket.socket],
) -> None:
    supervisor, other = ends
    other.close()
    supervisor.ready()
    supervisor.failed("too late", 1)


async def test_a_stop_is_waited_for(ends: tuple[Supervisor, socket.socket]) -> None:
    supervisor, other = ends
    with trio.move_on_after(0.05) as scope:
        await supervisor.wait_for_stop(lambda reads, devices: None)
    assert scope.cancelled_caught
    other.send(b'{"command": "something new"}')
    other.send(b'{"command": "stop"}')
    with trio.fail_after(60):
        await supervisor.wait_for_stop(lambda reads, devices: None)


async def test_the_end_of_the_supervisor_is_a_stop(
    ends: tuple[Supervisor, socket.socket],
) -> None:
    supervisor, other = ends
    other.close()
    with trio.fail_after(60):
        await supervisor.wait_for_stop(lambda reads, devices: None)


async def test_the_socket_for_reads_comes_with_the_devices(
    ends: tuple[Supervisor, socket.socket],
) -> None:
    supervisor, other = ends
    taken: list[int] = []

    def take(reads: int, devices: list[int]) -> None:
        assert os.fstat(reads).st_ino != os.fstat(devices[0]).st_ino
        taken.extend([reads, *devices])

    null = os.memfd_create("device")
    socket.send_fds(other, [b'{"command": "reads"}'], [other.fileno()] + [null] * 16)
    os.close(null)
    other.send(b'{"command": "stop"}')
    with trio.fail_after(60):
        await supervisor.wait_for_stop(take)
    assert len(taken) == 17
    for fd in taken:
        os.close(fd)


def test_a_segment_is_offered_with_its_file(ends: tuple[Supervisor, socket.socket]) -> None:
    supervisor, other = ends
    with open("/dev/null", "rb") as null:
        supervisor.offer_segment(4, null.fileno())
    data, [fd], _, _ = socket.recv_fds(other, 1000, 2)
    assert json.loads(data) == {"event": "segment", "class": 4}
    os.close(fd)
