"""The profiles of a mount: what arms have learned is kept, shared, and taught when an image opens.

A profile is looked for in this order: in the index by the image's name; in the store, which has
been asked already for the newest images (early.py); and among the profiles of other images that
this one has content of (policy/prefetch/clusters.py). When the record of a start is complete it is
kept here, and added to the one in the store. Nothing waits for any of that, and what fails is as if
there were no profile.

Concurrency: event loop; bytes are read, packed and written in threads and fetchers.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from cachefs.errors import CachefsError, CorruptError, FormatError, NotFoundError, UsageError
from cachefs.index.profiles import ProfileRows
from cachefs.policy.prefetch.arms import learners
from cachefs.policy.prefetch.clusters import neighbour, sketch_of
from cachefs.policy.prefetch.learner import Learner, Rows
from cachefs.policy.prefetch.profile import MOST_BYTES, Profile, from_bytes, to_bytes
from cachefs.policy.prefetch.replay import Known, Replay
from cachefs.policy.prefetch.seam import Keys
from cachefs.policy.prefetch.starts import LEAST_CONFIDENCE, confidence_of, starts_in
from cachefs.prefetch.image import OpenImage
from cachefs.prefetch.prefetcher import Prefetcher
from cachefs.prefetch.sharing import ProfileSharing

logger = logging.getLogger(__name__)

_LOOK_S = 5.0
_MOST_WAITING = 256
_SLICE_ROWS = 4096
"""Some ten milliseconds of the event loop."""


class Profiles:
    """Between arms, index and store."""

    def __init__(
        self,
        rows: ProfileRows,
        sharing: ProfileSharing | None,
        prefetcher: Prefetcher,
        name_of: Callable[[int], str | None],
    ) -> None:
        self._rows = rows
        self._sharing = sharing
        self._early = sharing.early if sharing is not None else None
        self._prefetcher = prefetcher
        self._arms = learners(prefetcher.arms)
        self._replay = next((arm for arm in self._arms if isinstance(arm, Replay)), None)
        self._name_of = name_of
        self._open: dict[OpenImage, str] = {}
        self._to_teach: list[OpenImage] = []
        self._to_keep: list[tuple[Profile, Profile | None]] = []
        """What is known of an image, and the run that the store has not seen yet."""
        self._kept: set[OpenImage] = set()
        """Open images whose start is recorded and kept."""
        self._taught: set[OpenImage] = set()
        """Open images whose arms were told all that was known: of others nothing may be kept, or
        it would be lost."""
        self._sketches: dict[str, Keys] | None = None
        self._has_opened = trio.Event()
        self._wake = trio.Event()

    def shown(self) -> None:
        """Other images are shown."""
        if self._early is not None:
            self._early.shown()

    def opened(self, image: OpenImage) -> None:
        """An image was opened that nobody had open."""
        name = self._name_of(image.inode)
        if name is not None:
            self._open[image] = name
            if len(self._to_teach) < _MOST_WAITING:
                self._to_teach.append(image)
                self._prefetcher.hold(image)
            self._has_opened.set()

    def closed(self, image: OpenImage) -> None:
        """An image is about to be forgotten by the arms."""
        name = self._open.pop(image, None)
        if name is not None and image in self._taught and len(self._to_keep) < _MOST_WAITING:
            profile = self._collected(image, name)
            run = None if image in self._kept else self._run_of(image, profile, is_whole=False)
            self._to_keep.append((profile, run))
            self._wake.set()
        self._kept.discard(image)
        self._taught.discard(image)

    async def run(self) -> None:
        """Teach, keep and share until cancelled; a guest that starts waits for no other one."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_all)
            if self._early is not None:
                nursery.start_soon(self._early.run)
            while True:
                await self._has_opened.wait()
                self._has_opened = trio.Event()
                while self._to_teach:
                    nursery.start_soon(self._teach, self._to_teach.pop(0))

    async def _keep_all(self) -> None:
        while True:
            with trio.move_on_after(_LOOK_S):
                await self._wake.wait()
            self._wake = trio.Event()
            while self._to_keep:
                profile, run = self._to_keep.pop(0)
                await self._keep(profile)
                await self._share(run)
            for image, name in list(self._open.items()):
                await self._look(image, name)
            if self._sharing is not None:
                await self._sharing.give_due()

    async def save(self) -> None:
        """Keep all that is known: the daemon stops. Nothing is shared, the fetchers may be gone."""
        for image, name in self._open.items():
            if image in self._taught:
                self._to_keep.append((self._collected(image, name), None))
        while self._to_keep:
            await self._keep(self._to_keep.pop(0)[0])

    # ---- teaching ----

    async def _teach(self, image: OpenImage) -> None:
        name = self._open.get(image)
        sections = await self._find(image, name) if name is not None else {}
        if "replay" in sections:
            await self._teach_replay(image, sections["replay"])
        self._prefetcher.release(image)
        for arm in self._arms:
            if arm.name in sections and not isinstance(arm, Replay):
                await self._teach_arm(arm, image, sections[arm.name])
        if image in self._open:
            self._taught.add(image)

    async def _teach_replay(self, image: OpenImage, rows: Rows) -> None:
        """What is fetched first comes of it: where its rows lie is found in a thread."""
        known = await trio.to_thread.run_sync(Known, rows, image)
        if self._replay is not None and image in self._open:
            wishes = self._replay.knows(image, known, time.monotonic())
            self._prefetcher.plan(image, self._replay.name, wishes)

    async def _teach_arm(self, arm: Learner, image: OpenImage, rows: Rows) -> None:
        """Teach an arm in slices: a hit waits for one of them at most."""
        for begin in range(0, len(rows), _SLICE_ROWS):
            if image not in self._open:
                return
            arm.taught(image, rows[begin : begin + _SLICE_ROWS])
            await trio.lowlevel.checkpoint()

    async def _find(self, image: OpenImage, name: str) -> dict[str, Rows]:
        """Return what is known of an image, or of one like it, by arm."""
        profile = await trio.to_thread.run_sync(self._read, name)
        if profile is None and self._sharing is not None:
            profile = await self._sharing.find(name)
        if profile is None:
            profile = await self._from_neighbour(image)
        if profile is None or profile.chunk_bytes != image.chunk_bytes:
            return {}
        return profile.sections

    async def _from_neighbour(self, image: OpenImage) -> Profile | None:
        sketches = self._sketches
        if sketches is None:
            sketches = self._sketches = await trio.to_thread.run_sync(self._read_sketches)
        found = await trio.to_thread.run_sync(neighbour, image, sketches)
        if found is None:
            return None
        logger.info("inode %d starts with the profile of %s", image.inode, found[0])
        return await trio.to_thread.run_sync(self._read, found[0])

    def _read(self, name: str) -> Profile | None:
        data = self._rows.get(name)
        try:
            return from_bytes(data) if data is not None else None
        except (FormatError, CorruptError) as error:
            logger.warning("the profile of %s is passed over: %s", name, error)
            return None

    def _read_all(self) -> list[Profile]:
        profiles = []
        for data in self._rows.all():
            try:
                profiles.append(from_bytes(data))
            except (FormatError, CorruptError) as error:
                logger.warning("a profile is passed over: %s", error)
        return profiles

    def _read_sketches(self) -> dict[str, Keys]:
        return {
            profile.image: sketch_of(profile.sections["replay"])
            for profile in self._read_all()
            if "replay" in profile.sections
        }

    # ---- keeping ----

    async def _look(self, image: OpenImage, name: str) -> None:
        """Keep and share the record of a start as soon as it is complete."""
        if image not in self._taught or image in self._kept or not self._is_over(image):
            return
        self._kept.add(image)
        profile = self._collected(image, name)
        run = self._run_of(image, profile, is_whole=True)
        await self._keep(profile)
        await self._share(run)

    def _is_over(self, image: OpenImage) -> bool:
        return self._replay is not None and self._replay.is_over(image, time.monotonic())

    def _run_of(self, image: OpenImage, profile: Profile, *, is_whole: bool) -> Profile | None:
        """Return the run of this time, as the store wants it; None if there is nothing to tell."""
        replay = self._replay
        if replay is None or self._sharing is None or "replay" not in profile.sections:
            return None
        record = replay.record(image)
        sections = profile.sections | {"replay": record}
        made = Profile(profile.image, profile.chunk_bytes, sections, profile.saved_s, is_whole)
        return made if len(record) else None

    def _collected(self, image: OpenImage, name: str) -> Profile:
        sections = {}
        for arm in self._arms:
            try:
                rows = arm.learned(image)
            except CachefsError as error:  # its table is damaged: a read will say, and mend it
                logger.debug("nothing is learned of %s: %s", name, error)
                continue
            if rows is not None:
                sections[arm.name] = rows
        return Profile(name, image.chunk_bytes, sections, time.time())

    async def _keep(self, profile: Profile) -> None:
        if not profile.sections:
            return
        try:
            await trio.to_thread.run_sync(self._write, profile)
        except CachefsError as error:
            logger.warning("%s", error)

    def _write(self, profile: Profile) -> None:
        self._rows.put(profile.image, to_bytes(profile), profile.saved_s)
        self._sketches = None

    async def _share(self, run: Profile | None) -> None:
        if self._sharing is not None:
            await self._sharing.give(run)

    # ---- for operators ----

    async def command(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer `cachefs profile`.

        Raises:
            CachefsError: there is no such profile, or the file is none.
        """
        action, name = request.get("action"), str(request.get("name", ""))
        if action == "list":
            profiles = await trio.to_thread.run_sync(self._read_all)
            return {"profiles": [described(profile) for profile in profiles]}
        if action == "import":
            profile = await trio.to_thread.run_sync(read_profile, Path(str(request["path"])))
            await trio.to_thread.run_sync(self._write, renamed(profile, name))
        elif action == "handover":
            return await self._hand_over(name, request)
        elif action == "drop":
            if not await trio.to_thread.run_sync(self._rows.drop, name):
                raise NotFoundError(f"there is no profile of '{name}': see 'cachefs profile list'")
            self._sketches = None
            return {"profiles": []}
        elif action not in {"show", "export"}:
            raise UsageError(f"cannot '{action}' a profile")
        profile = await self._wanted(name)
        if action == "export":
            path = Path(str(request["path"]))
            await trio.to_thread.run_sync(write_profile, path, profile)
        return {"profiles": [described(profile)]}

    async def _hand_over(self, name: str, request: dict[str, Any]) -> dict[str, Any]:
        """Write what the guests of an open image have touched lately to a file, as a profile."""
        image = next((image for image, opened in self._open.items() if opened == name), None)
        if image is None:
            raise NotFoundError(f"no guest has '{name}' open here: there is nothing to hand over")
        rows = image.recent.rows(image, time.monotonic(), float(request["lately_s"]))
        profile = Profile(name, image.chunk_bytes, {"replay": rows}, time.time())
        await trio.to_thread.run_sync(write_profile, Path(str(request["path"])), profile)
        return {
            "image": name,
            "chunks": len(rows),
            "bytes": profile.working_set_bytes,
            "path": str(request["path"]),
        }

    async def of(self, name: str) -> Profile:
        """Return what is known of an image: on this host, or else in the store.

        Raises:
            NotFoundError: nothing is.
        """
        try:
            return await self._wanted(name)
        except NotFoundError:
            profile = await self._sharing.find(name) if self._sharing is not None else None
            if profile is None:
                raise
            return profile

    async def _wanted(self, name: str) -> Profile:
        """Return a profile as it is now: of an open image with what it does this time."""
        for image, opened in self._open.items():
            if opened == name and image in self._taught:
                profile = self._collected(image, name)
                if profile.sections:
                    return profile
        kept = await trio.to_thread.run_sync(self._read, name)
        if kept is None:
            raise NotFoundError(f"there is no profile of '{name}': see 'cachefs profile list'")
        return kept


def described(profile: Profile) -> dict[str, Any]:
    """Return what people want to know of a profile."""
    replay = profile.sections.get("replay")
    certain = int((confidence_of(replay) >= LEAST_CONFIDENCE).sum()) if replay is not None else 0
    return {
        "image": profile.image,
        "chunk_bytes": profile.chunk_bytes,
        "saved_s": profile.saved_s,
        "runs": starts_in(replay) if replay is not None else 0,
        "working_set_bytes": profile.working_set_bytes,
        "replayed_bytes": certain * profile.chunk_bytes,
        "rows": {name: len(rows) for name, rows in profile.sections.items()},
    }


def renamed(profile: Profile, name: str) -> Profile:
    """Return a profile for an image of another name."""
    return Profile(name, profile.chunk_bytes, profile.sections, profile.saved_s)


def read_profile(path: Path) -> Profile:
    """Return the profile in a file. Blocks.

    Raises:
        NotFoundError: there is no such file.
        FormatError, CorruptError: it is none, or damaged.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise NotFoundError(f"cannot read the profile {path}: {error.strerror}") from error
    return from_bytes(data)


def write_profile(path: Path, profile: Profile) -> None:
    """Write a profile to a file, complete or not at all. Blocks.

    Raises:
        CachefsError: the disk does not let us.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(to_bytes(profile))
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise CachefsError(f"cannot write {path}: {error.strerror}") from error
