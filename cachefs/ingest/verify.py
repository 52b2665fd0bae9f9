"""Verify: reads back all that a store holds, and says what is wrong, whom it hits and what to do.

An outage ends it with an exception; damage is a finding, and the check goes on.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cachefs.errors import CorruptError, FormatError, ObjectMissingError, UsageError
from cachefs.ingest.verify_pack import PackCheck, Problem, Use, check_pack
from cachefs.model.image import Image, ImageVersion
from cachefs.model.manifest import Manifest
from cachefs.store import layout
from cachefs.store.store import Store

_BROKEN = (CorruptError, FormatError, ObjectMissingError)

OnProgress = Callable[[int, int], None]
"""Told how many bytes of packs are checked, and how many there are."""


@dataclass(slots=True)
class VerifyReport:
    """What was checked and found. `foreign`: keys of files that are no part of a store."""

    image_count: int = 0
    version_count: int = 0
    pack_count: int = 0
    chunk_count: int = 0
    stored_bytes: int = 0
    duration_s: float = 0.0
    foreign: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def verify_store(
    store: Store, name: str | None = None, on_progress: OnProgress = lambda _done, _all: None
) -> VerifyReport:
    """Check a whole store, or what one image needs.

    Args:
        store: What to check.
        name: Of the one image; all images, and what belongs to none, if it is None.
        on_progress: Is called after each pack.

    Raises:
        NotFoundError: no image of that name.
        StoreUnavailableError: the store does not answer.
    """
    begun_s = time.monotonic()
    report = VerifyReport()
    uses: dict[bytes, list[Use]] = defaultdict(list)
    manifests = set()
    for image in _images(store, name, report):
        report.image_count += 1
        for version in image.versions:
            manifests.add(version.manifest)
            _check_version(store, image.name, version, uses, report)
    sizes_bytes = _pack_sizes(store, report)
    if name is None:
        _check_other_manifests(store, manifests, report)
        _find_foreign(store, report)
    else:
        sizes_bytes = {pack: size for pack, size in sizes_bytes.items() if pack in uses}
    _check_packs(store, uses, sizes_bytes, report, on_progress)
    report.duration_s = time.monotonic() - begun_s
    return report


def _images(store: Store, name: str | None, report: VerifyReport) -> Iterator[Image]:
    if name is not None:
        yield store.image(name)[0]
        return
    names = [entry.name for entry in store.images()]
    for found in names:
        key = layout.image_key(found)
        try:
            image = store.image(found)[0]
        except ObjectMissingError:
            continue  # removed since it was listed
        except (CorruptError, FormatError) as error:
            report.problems.append(Problem(key, str(error), (found,), "import the image again"))
            continue
        except UsageError:
            report.foreign.append(key)
            continue
        if any(other.startswith(f"{found}/") for other in names):
            what = "the name is that of an image and of a folder"
            report.problems.append(Problem(key, what, (found,), "rename one of them"))
        yield image


def _check_version(
    store: Store,
    name: str,
    version: ImageVersion,
    uses: dict[bytes, list[Use]],
    report: VerifyReport,
) -> None:
    report.version_count += 1
    label = f"{name} version {version.number}"
    key = layout.manifest_key(version.manifest)
    advice = f"import '{name}' again"
    try:
        manifest = store.manifest(version.manifest)
    except _BROKEN as error:
        report.problems.append(Problem(key, str(error), (label,), advice))
        return
    plain_bytes = _plain_bytes(manifest)
    found = (manifest.size_bytes, manifest.chunk_bytes, int(plain_bytes.sum()))
    if found != (version.size_bytes, version.chunk_bytes, version.data_bytes):
        what = "the image's record and its manifest disagree about sizes"
        report.problems.append(Problem(layout.image_key(name), what, (label,), advice))
    order = np.argsort(manifest.records["pack"], kind="stable")
    numbers, firsts = np.unique(manifest.records["pack"][order], return_index=True)
    for number, first, last in zip(numbers, firsts, [*firsts[1:], len(order)], strict=False):
        rows = order[first:last]
        use = Use(label, manifest.records[rows], plain_bytes[rows])
        uses[manifest.packs[number]].append(use)


def _plain_bytes(manifest: Manifest) -> npt.NDArray[np.uint64]:
    """Return the length of each record's chunk: (n,) uint64."""
    begins = manifest.indexes() * np.uint64(manifest.chunk_bytes)
    lengths: npt.NDArray[np.uint64]
    lengths = np.minimum(np.uint64(manifest.size_bytes) - begins, np.uint64(manifest.chunk_bytes))
    return lengths


def _pack_sizes(store: Store, report: VerifyReport) -> dict[bytes, int]:
    """Return the packs that there are, and how large they are."""
    sizes_bytes = {}
    for info in store.objects.list(layout.PACKS_PREFIX):
        pack = layout.pack_id(info.key)
        if pack is None:
            report.foreign.append(info.key)
        else:
            sizes_bytes[pack] = info.size_bytes
    return sizes_bytes


def _check_other_manifests(store: Store, known: set[str], report: VerifyReport) -> None:
    for info in store.objects.list(layout.MANIFESTS_PREFIX):
        manifest_id = info.key.removeprefix(layout.MANIFESTS_PREFIX)
        if not layout.is_manifest_id(manifest_id):
            report.foreign.append(info.key)
        elif manifest_id not in known:
            try:
                store.manifest(manifest_id)
            except ObjectMissingError:
                continue
            except (CorruptError, FormatError) as error:
                report.problems.append(Problem(info.key, str(error), (), "remove it"))


def _find_foreign(store: Store, report: VerifyReport) -> None:
    for info in store.objects.list(""):
        if info.key != layout.DESCRIPTION_KEY and not info.key.startswith(layout.FOLDERS):
            report.foreign.append(info.key)
    for info in store.objects.list(layout.IMAGES_PREFIX):
        if not info.key.endswith(".json"):
            report.foreign.append(info.key)


def _check_packs(
    store: Store,
    uses: dict[bytes, list[Use]],
    sizes_bytes: dict[bytes, int],
    report: VerifyReport,
    on_progress: OnProgress,
) -> None:
    all_bytes = sum(sizes_bytes.values())

    def check(pack: bytes) -> PackCheck:
        return check_pack(store, pack, uses.get(pack, []))

    with ThreadPoolExecutor(len(os.sched_getaffinity(0)), "verify") as threads:
        packs = sorted(sizes_bytes.keys() | uses.keys())
        try:
            for pack, result in zip(packs, threads.map(check, packs), strict=True):
                report.pack_count += 1
                report.chunk_count += result.chunk_count
                report.stored_bytes += sizes_bytes.get(pack, 0)
                report.problems.extend(result.problems)
                on_progress(report.stored_bytes, all_bytes)
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise
