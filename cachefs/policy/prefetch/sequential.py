"""The arm that reads on: sequential runs, forward and backward, and strides.

In the manner of AMP (Gill and Bathen, FAST'07): each stream has a window, how far it is run ahead
of, and a trigger: when a quarter of the window has been read, the next quarter is wished for. A
window is never longer than what its stream has read already, so a run that ends at any moment has
wasted at most as much as it used; runs of a kind that does not last (runs.py) get none. It shrinks
with what was wasted, and the tier that serves bounds it: bandwidth x latency is `ceiling_bytes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from cachefs.policy.prefetch.onset import Onsets
from cachefs.policy.prefetch.pattern import Pattern
from cachefs.policy.prefetch.seam import NOTHING, Access, Image, Wish
from cachefs.policy.prefetch.stakes import Stakes
from cachefs.policy.prefetch.streams import ESTABLISHED_READS, Kind, Stream, Streams
from cachefs.units import MIB

_TRIGGER_PARTS = 4
_MOST_STEPS = 64
"""Of a stride, wished for ahead."""

_QUIET_ACCESSES = 256
_QUIET_S = 2.0
"""A stream that was not continued for so long has turned elsewhere: its wishes are taken back."""

_FADE = 1 / 256
"""Weight of one more chunk in the share that was wasted."""

_FORWARD, _BACKWARD, _STRIDED = Kind.FORWARD, Kind.BACKWARD, Kind.STRIDED


@dataclass(slots=True)
class _Watched:
    stakes: Stakes
    onsets: Onsets
    streams: Streams = field(default_factory=Streams)
    pattern: Pattern = field(default_factory=Pattern)
    wasted: float = 0.0
    """The share of the chunks judged last that were not used."""


def _watched(image: Image) -> _Watched:
    return _Watched(Stakes(image.chunk_bytes), Onsets(image.chunk_bytes))


class Sequential:
    """See Arm. `ceiling_bytes` is the longest window, in bytes of the image."""

    name = "sequential"

    def __init__(self, ceiling_bytes: int = 16 * MIB) -> None:
        self.ceiling_bytes = ceiling_bytes
        self._images: dict[int, _Watched] = {}

    def opened(self, image: Image, time_s: float) -> Sequence[Wish]:
        """See Arm."""
        self._images[id(image)] = _watched(image)
        return NOTHING

    def closed(self, image: Image, time_s: float) -> None:
        """See Arm."""
        self._images.pop(id(image), None)

    def judged(self, image: Image, chunk: int, was_used: bool) -> None:
        """See Arm."""
        watched = self._images.get(id(image))
        if watched is not None:
            watched.wasted += _FADE * ((not was_used) - watched.wasted)
            if was_used:
                watched.stakes.used(chunk)

    def others_had(self, image: Image) -> None:
        """A chunk was read that another arm had fetched: it would have cost this one as much."""
        watched = self._images.get(id(image))
        if watched is not None:
            watched.stakes.cost(1)

    def pattern(self, image: Image) -> Pattern:
        """Return what the accesses of an image look like."""
        watched = self._images.get(id(image))
        return watched.pattern if watched is not None else Pattern()

    def observe(self, image: Image, access: Access) -> Sequence[Wish]:
        """See Arm."""
        watched = self._images.get(id(image))
        if watched is None:
            watched = self._images[id(image)] = _watched(image)
        streams = watched.streams
        stream = streams.observe(access, image.chunk_bytes)
        watched.pattern.add(stream.kind, access.reads, access.time_s)
        watched.stakes.read(access.count, is_hit=access.is_hit)
        wishes: Sequence[Wish] = NOTHING
        if not streams.accesses % _QUIET_ACCESSES:
            wishes = _turned(streams, access.time_s)
        onsets = watched.onsets
        onsets.read(access.first, access.count, is_hit=access.is_hit)
        if stream.reads >= ESTABLISHED_READS:
            more = self._ahead(watched, stream, image)
        elif stream.kind is not _BACKWARD:
            more = _next(onsets, stream, image, access.first + access.count)
        else:
            return wishes
        return [*wishes, *more] if more else wishes

    def _ahead(self, watched: _Watched, stream: Stream, image: Image) -> Sequence[Wish]:
        """Return what a stream that is believed will read."""
        stakes, run_bytes = watched.stakes, stream.run_bytes
        if stream.ahead_to is not None:
            _note_ahead(stakes, stream, image)
        window_bytes = int(min(run_bytes, self.ceiling_bytes) * (1 - watched.wasted) ** 2)
        least_bytes = min(image.chunk_bytes, run_bytes)
        if window_bytes < least_bytes:
            return NOTHING
        cost = _step_cost(stream, image) if stream.kind is _STRIDED else 1.0
        bound_bytes = stakes.window_bytes(stream.number, int(run_bytes * cost))
        window_bytes = min(window_bytes, int(bound_bytes / cost))
        if window_bytes < least_bytes:
            return NOTHING
        if stream.kind is _STRIDED:
            guesses: Sequence[Wish] = _steps(stream, image, window_bytes)
        else:
            guesses = _onwards(watched.streams, stream, image, window_bytes)
        if guesses:
            _note_ahead(stakes, stream, image)
        return guesses


def _next(onsets: Onsets, stream: Stream, image: Image, following: int) -> Sequence[Wish]:
    """Return the chunk after the first reads of a run, if most runs go on here."""
    if following >= image.chunks:
        return NOTHING
    chance = onsets.guess(following, stream.reads)
    return [Wish(following, 1, chance, stream=stream.number)] if chance else NOTHING


def _turned(streams: Streams, time_s: float) -> list[Wish]:
    """Take back what streams that have turned elsewhere had wished for."""
    gone = streams.quiet(_QUIET_ACCESSES, time_s - _QUIET_S)
    return [Wish(0, 0, 0.0, stream=s.number) for s in gone if s.ahead_to is not None]


def _step_cost(stream: Stream, image: Image) -> float:
    """Return how many bytes a step of a stride makes be fetched, for each that it reads."""
    return max(1.0, image.chunk_bytes / stream.size_bytes)


def _note_ahead(stakes: Stakes, stream: Stream, image: Image) -> None:
    """Let the account know how far a stream is run ahead of."""
    ahead, chunk_bytes, run_bytes = stream.ahead_to, image.chunk_bytes, stream.run_bytes
    assert ahead is not None
    if stream.kind is _FORWARD:
        chunks = range((stream.end - 1) // chunk_bytes + 1, ahead)
    elif stream.kind is _BACKWARD:
        chunks = range(stream.begin // chunk_bytes - 1, ahead, -1)
    else:
        steps = range(stream.begin + stream.stride_bytes, ahead, stream.stride_bytes)
        step = max(1, abs(stream.stride_bytes) // chunk_bytes)
        step = step if stream.stride_bytes > 0 else -step
        first = (stream.begin + stream.stride_bytes) // chunk_bytes
        chunks = range(first, first + step * len(steps), step)
        run_bytes = int(run_bytes * _step_cost(stream, image))
    stakes.goes_on(stream.number, run_bytes, chunks)


def _onwards(streams: Streams, stream: Stream, image: Image, window_bytes: int) -> Sequence[Wish]:
    """Return what comes after a forward run, or before a backward one."""
    chunk_bytes = image.chunk_bytes
    step = 1 if stream.kind is _FORWARD else -1
    edge = (stream.end - 1) // chunk_bytes if step > 0 else stream.begin // chunk_bytes
    ahead = stream.ahead_to
    if ahead is None or (ahead - edge) * step < 1:
        ahead = edge + step  # the reader has overtaken
    limit = image.chunks - ahead if step > 0 else ahead + 1
    done = (ahead - edge) * step - 1
    if not _missing(window_bytes // chunk_bytes, done, limit):
        return NOTHING  # as most often: whatever the lengths of runs say
    reach_bytes, chance = streams.lengths.reach(stream.run_bytes)
    more_bytes = reach_bytes - stream.run_bytes
    if more_bytes < stream.size_bytes:
        return NOTHING  # its next read is the one that is less likely than that
    window_bytes = min(window_bytes, more_bytes)
    missing = _missing(window_bytes // chunk_bytes, done, limit)
    if not missing:
        return NOTHING
    stream.ahead_to = ahead + step * missing
    first = ahead if step > 0 else ahead - missing + 1
    return [Wish(first, missing, chance, stream=stream.number)]


def _missing(window: int, done: int, limit: int) -> int:
    """Return how many chunks to wish for where so many are; 0 while that is not a part's worth."""
    missing = min(window - done, limit)
    if missing <= 0 or (missing < limit and missing < -(-window // _TRIGGER_PARTS)):
        return 0
    return missing


def _steps(stream: Stream, image: Image, window_bytes: int) -> list[Wish]:
    """Return the next steps of a stride."""
    stride, chunk_bytes = stream.stride_bytes, image.chunk_bytes
    steps = min(_MOST_STEPS, stream.reads, max(1, window_bytes // stream.size_bytes))
    ahead = stream.ahead_to
    if ahead is None or (ahead - stream.begin) // stride < 1:
        ahead = stream.begin + stride
    missing = steps - (ahead - stream.begin) // stride + 1
    if missing < -(-steps // _TRIGGER_PARTS):
        return []
    chance = 1 - 1 / stream.reads
    wishes: list[Wish] = []
    for _ in range(missing):
        begin, end = ahead, ahead + stream.size_bytes
        if begin < 0 or begin >= image.chunks * chunk_bytes:
            break
        first = begin // chunk_bytes
        last = min((end - 1) // chunk_bytes, image.chunks - 1)
        if not wishes or wishes[-1].first != first:
            wishes.append(Wish(first, last - first + 1, chance, stream=stream.number))
        ahead += stride
    stream.ahead_to = ahead
    return wishes
