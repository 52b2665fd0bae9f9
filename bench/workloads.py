"""Workloads that are made, for policies that were tuned on recordings: nobody looked at these.

Each has a shape that some policy is known to be good or bad at; a seed draws another of the kind.
`fleet` interleaves recorded boots as several guests of two versions of an image.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cachefs.simulate.accesses import Requests
from cachefs.simulate.readers import read_requests
from cachefs.units import KIB, MIB

Index = npt.NDArray[np.int64]
Draw = np.random.Generator

_ACCESSES = 120_000
_CHUNKS = 12_000
_CHUNK_BYTES = 64 * KIB


def zipf(rng: Draw, accesses: int, chunks: int, power: float) -> Index:
    """Return chunks by popularity: the k-th is wanted as often as 1 / k ** `power`."""
    share = 1 / np.arange(1, chunks + 1) ** power
    return rng.choice(chunks, accesses, p=share / share.sum())


def popular(rng: Draw) -> Index:
    """What is popular stays so."""
    return rng.permutation(_CHUNKS)[zipf(rng, _ACCESSES, _CHUNKS, 0.9)]


def drifting(rng: Draw) -> Index:
    """What is popular changes at once, eight times."""
    return np.concatenate(
        [rng.permutation(_CHUNKS)[zipf(rng, _ACCESSES // 8, _CHUNKS, 1.0)] for _ in range(8)]
    )


def sliding(rng: Draw) -> Index:
    """Each chunk is wanted for a while and never again."""
    base = np.arange(_ACCESSES) * _CHUNKS // _ACCESSES
    return base + np.minimum(rng.geometric(1 / 400, _ACCESSES), 5_000)


def recent(rng: Draw) -> Index:
    """The more recent, the likelier to be wanted: LRU is right."""
    stack = rng.permutation(_CHUNKS).tolist()
    depth = np.minimum((rng.pareto(0.6, _ACCESSES) * 8).astype(np.int64), _CHUNKS - 1)
    found = np.empty(_ACCESSES, np.int64)
    for at, place in enumerate(depth.tolist()):
        found[at] = stack.pop(place)
        stack.insert(0, found[at])
    return found


def looping(rng: Draw) -> Index:
    """Two loops, one of them longer than most caches, beside what is popular."""
    kind = rng.integers(0, 3, _ACCESSES)
    first = np.cumsum(kind == 0) % 2_000
    second = 5_000 + np.cumsum(kind == 1) % 7_000
    third = 13_000 + zipf(rng, _ACCESSES, 3_000, 1.0)
    return np.where(kind == 0, first, np.where(kind == 1, second, third))


def backed_up(rng: Draw) -> Index:
    """What is popular, and a backup that reads chunks once, four times."""
    usual = popular(rng)
    parts: list[Index] = []
    for number, part in enumerate(np.array_split(usual, 5)):
        parts += [part, np.arange(6_000) + 100_000 + 6_000 * number]
    return np.concatenate(parts[:-1])


def changing(rng: Draw) -> Index:
    """Recency, a loop and popularity in turn."""
    length, parts = _ACCESSES // 12, []
    for turn in range(4):
        back = np.minimum(rng.geometric(1 / 300, length), 3_000)
        parts += [
            (np.arange(length) * 1_500 // length + turn * 900 + back) % _CHUNKS,
            np.arange(length) % 2_500 + turn * 300,
            rng.permutation(_CHUNKS)[zipf(rng, length, _CHUNKS, 1.0)],
        ]
    return np.concatenate(parts)


def bursting(rng: Draw) -> Index:
    """Runs of neighbours, each read a few times in a row, from popular places."""
    starts = rng.permutation(4 * _CHUNKS)[zipf(rng, _ACCESSES // 4, _CHUNKS, 0.9)]
    parts: list[Index] = []
    for start in starts.tolist():
        run = np.arange(start, start + min(int(rng.geometric(1 / 6)), 60))
        parts.append(np.repeat(run, rng.geometric(0.5)))
    return np.concatenate(parts)[:_ACCESSES]


MADE: dict[str, Callable[[Draw], Index]] = {
    each.__name__.replace("_", " "): each
    for each in (
        popular,
        drifting,
        sliding,
        recent,
        looping,
        backed_up,
        changing,
        bursting,
    )
}


def made(name: str, seed: int) -> Requests:
    """Return a workload of one of the kinds of MADE, in requests of 64 KiB."""
    index = MADE[name](np.random.default_rng(1_000 + seed))
    return _requests(f"{name} {seed}", index)


def _requests(name: str, index: Index) -> Requests:
    lengths = np.full(len(index), _CHUNK_BYTES)
    return Requests(name, index * _CHUNK_BYTES, lengths, np.zeros(len(index)))


_VERSION_SHARE = 0.15
"""Of an image's chunks, those that the next version changes: an upgrade of some packages."""
EXTENT_BYTES = MIB
"""They lie together."""
_NEXT_VERSION_BYTES = 1 << 40
IMAGE_BYTES = 512 * MIB


class FleetReads(NamedTuple):
    """What guests read of two versions of one image, in the order of time.

    Attributes:
        time_us: (reads,) since the first guest.
        offset: (reads,) of the version that the guest has.
        length: (reads,) in bytes; none goes beyond the image's end.
        is_next: (reads,) whether it is the next version.
        changed: (extents,) which extents of `EXTENT_BYTES` the next version changes.
    """

    time_us: npt.NDArray[np.float64]
    offset: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]
    is_next: npt.NDArray[np.bool_]
    changed: npt.NDArray[np.bool_]


def fleet_reads(boots: Path, seed: int, guests: int = 48, *, backup: bool = False) -> FleetReads:
    """Return guests that boot and work, several at a time, from two versions of one image.

    With `backup` both are read from end to end in the middle.

    Args:
        boots: The folder of recordings.
        seed: Which guest does what, when, and what the next version changes.
        guests: How many boot in all, at one a 20 s.
        backup: Whether it runs.
    """
    rng = np.random.default_rng(seed)
    recordings = [read_requests(path) for path in sorted(boots.glob("*.txt.gz"))]
    extents = IMAGE_BYTES // EXTENT_BYTES
    changed = rng.random(extents + 1) < _VERSION_SHARE
    rows: list[npt.NDArray[np.float64]] = []
    for guest in range(guests):
        one = recordings[int(rng.integers(len(recordings)))]
        is_next = rng.random() < guest / guests  # the new version spreads
        start_us = (guest + rng.random()) * 20e6
        rows.append(_guest(one, start_us, is_next=is_next))
    if backup:
        for version in (False, True):
            offset = np.arange(0, IMAGE_BYTES, MIB)
            when = np.asarray(guests / 2 * 20e6 + np.arange(len(offset)) * 5e4, np.float64)
            scan = Requests("backup", offset, np.full(len(offset), MIB), when)
            rows.append(_guest(scan, 60e6 * version, is_next=version))
    merged = np.concatenate(rows)
    merged = merged[np.argsort(merged[:, 0], kind="stable")]
    offset = merged[:, 1].astype(np.int64)
    length = np.minimum(merged[:, 2].astype(np.int64), IMAGE_BYTES - offset)
    return FleetReads(merged[:, 0], offset, length, merged[:, 3] > 0, changed[:extents])


def fleet(boots: Path, seed: int, *, backup: bool = False) -> Requests:
    """Return `fleet_reads` by content: what both versions share is at one place."""
    reads = fleet_reads(boots, seed, backup=backup)
    differs = reads.is_next & reads.changed[reads.offset // EXTENT_BYTES]
    name = f"fleet{' and backup' if backup else ''} {seed}"
    place = reads.offset + _NEXT_VERSION_BYTES * differs
    return Requests(name, place, reads.length, reads.time_us)


def _guest(one: Requests, start_us: float, *, is_next: bool) -> npt.NDArray[np.float64]:
    """Return rows of time, offset, length and version."""
    offset = one.offset_bytes % IMAGE_BYTES
    time_us = one.time_us - one.time_us[0] + start_us
    columns = (time_us, offset, one.length_bytes, np.full(len(offset), is_next))
    return np.stack([column.astype(np.float64) for column in columns], 1)
