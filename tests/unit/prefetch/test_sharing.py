"""Runs that the store does not take: kept, offered again ever more seldom, and told of once."""

import numpy as np
import pytest
import trio
import trio.testing

from cachefs.errors import ConflictError, StoreRefusedError
from cachefs.policy.prefetch.learner import SECTIONS
from cachefs.policy.prefetch.profile import Profile, from_bytes
from cachefs.prefetch.sharing import ProfileSharing
from cachefs.tiers.jobs import Answer, Job, ProfileFound, ProfileJob
from tests.caches import HandPool


def run(image: str, place: int = 0) -> Profile:
    rows = np.zeros(1, SECTIONS["replay"])
    rows["key"], rows["place"], rows["which"] = 7, place, 1
    return Profile(image, 4096, {"replay": rows})


class StoreOf(HandPool):
    """Takes profiles, or raises."""

    error: Exception | None = None

    def __init__(self) -> None:
        super().__init__()
        self.tries = 0
        self.taken: list[Profile] = []

    async def ask(self, job: Job, priority: int) -> Answer:
        assert isinstance(job, ProfileJob)
        self.tries += 1
        if self.error is not None:
            raise self.error
        self.taken.append(from_bytes(job.run))
        return ProfileFound(job.number, job.run)


async def look_for(sharing: ProfileSharing, seconds: float) -> None:
    """As the task of profiles does it."""
    end_s = trio.current_time() + seconds
    while trio.current_time() < end_s:
        await sharing.give_due()
        await trio.sleep(5)


async def test_what_was_refused_is_offered_again_and_told_of_once(
    caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    store = StoreOf()
    sharing = ProfileSharing(store)
    store.error = StoreRefusedError("403 AccessDenied")
    for number in range(40):
        await sharing.give(run(f"image-{number % 20}", number))
    assert store.tries == 1
    await look_for(sharing, 3600)
    assert 10 <= store.tries <= 14
    assert caplog.text.count("profiles are not shared") == 1
    assert "403 AccessDenied" in caplog.text
    store.error = None
    await look_for(sharing, 700)
    places = [int(profile.sections["replay"]["place"][0]) for profile in store.taken]
    assert places == list(range(24, 40))  # the last of each image, and of the last images
    assert caplog.text.count("takes profiles again") == 1
    await look_for(sharing, 700)
    assert len(store.taken) == 16
    store.error = StoreRefusedError("403 AccessDenied")
    await sharing.give(run("image"))
    assert caplog.text.count("profiles are not shared") == 2  # it is another outage


async def test_a_run_that_others_were_faster_than_is_no_outage(
    caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    store = StoreOf()
    sharing = ProfileSharing(store)
    store.error = ConflictError("try again")
    await sharing.give(run("image"))
    assert store.tries == 1
    await look_for(sharing, 60)
    assert store.tries == 1
    assert "profiles are not shared" not in caplog.text
