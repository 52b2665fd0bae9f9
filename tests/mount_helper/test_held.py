"""Requests that a daemon gives back, and images whose readers wait: no deadline ends them."""

import signal
import time
from collections.abc import Iterator

import pytest

from tests.mount.reading import Reading, digest_of
from tests.mount_helper.conftest import TinyMount, wait_for
from tests.mount_helper.tiny_daemon import expected

pytestmark = pytest.mark.mount

DEADLINES = ("--request-deadline-s", "0.5", "--answer-deadline-s", "0.5")
LIMIT_S = 0.5 + 2 * 0.5
WANTED = digest_of(expected(2, 0, 4096))


@pytest.fixture
def reading(tiny_mount: TinyMount) -> Iterator[list[Reading]]:
    made: list[Reading] = []
    yield made
    for reading in made:
        reading.end()


def begin(mount: TinyMount, made: list[Reading]) -> Reading:
    made.append(Reading(mount.data, 0, 4096))
    return made[-1]


@pytest.mark.parametrize("mode", ["holds", "reads-holds"])
def test_what_is_given_back_is_asked_again_until_it_is_answered(
    tiny_mount: TinyMount, reading: list[Reading], mode: str
) -> None:
    """Over the socket of libfuse, and over that of reads."""
    tiny_mount.started(mode, *DEADLINES, value=3 * LIMIT_S)
    begun_s = time.monotonic()
    assert begin(tiny_mount, reading).digest() == WANTED
    assert time.monotonic() - begun_s > 1.5 * LIMIT_S
    assert tiny_mount.lane("given_back") >= 3
    wait_for(lambda: tiny_mount.lane("held") == tiny_mount.lane("kept") == 0, "an empty table")


def test_what_was_given_back_is_never_too_late(
    tiny_mount: TinyMount, reading: list[Reading]
) -> None:
    tiny_mount.started("holds", *DEADLINES, value=3600)
    reader = begin(tiny_mount, reading)
    wait_for(lambda: tiny_mount.lane("held") == 1, "a request that is held")
    resent = tiny_mount.lane("resent")
    wait_for(lambda: tiny_mount.lane("resent") > resent + 8, "further tries")
    assert reader.is_under_way()
    reader.kill()
    wait_for(lambda: tiny_mount.lane("kept") == 0, "an empty table")
    assert tiny_mount.lane("answered_killed") == 1
    assert tiny_mount.lane("answered_late") == tiny_mount.lane("answered_outage") == 0


def test_an_image_that_holds_needs_no_daemon_to_say_so(
    tiny_mount: TinyMount, reading: list[Reading]
) -> None:
    """Its daemon neither answers nor, once it is dead, comes up again."""
    tiny_mount.started("hang-held", *DEADLINES)
    reader = begin(tiny_mount, reading)
    wait_for(lambda: tiny_mount.lane("resent") >= 3, "further tries")
    tiny_mount.signal_daemon(signal.SIGKILL)
    time.sleep(2 * LIMIT_S)
    assert reader.is_under_way()
    assert tiny_mount.lane("answered_late") == tiny_mount.lane("answered_outage") == 0
    reader.kill()
    wait_for(lambda: tiny_mount.lane("kept") == 0, "an empty table")


def test_other_images_still_have_deadlines(tiny_mount: TinyMount, reading: list[Reading]) -> None:
    tiny_mount.started("hang", *DEADLINES)
    assert begin(tiny_mount, reading).digest() == "Input/output error"
    assert tiny_mount.lane("answered_late") == 1
