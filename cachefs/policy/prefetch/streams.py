"""Streams: the reads of an image, told apart by where they continue each other.

Readers interleave: threads of one guest, guests of one image, a copy beside a boot. An access
belongs to the stream whose end (or, backwards, whose beginning) it meets, preferably one of the
same reader; else to a stride, if its reader has jumped by the same distance twice before; else it
begins a stream of its own. What never continues is forgotten, so random reads leave nothing.

Positions are in bytes, since a reader of 4 KiB who touches neighbouring chunks by chance is not a
sequential one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from cachefs.policy.prefetch.runs import RunLengths
from cachefs.policy.prefetch.seam import Access
from cachefs.units import MIB

MOST_STREAMS = 64
"""Of one image, the least recently used is forgotten: more guests than that read one image in
step seldom, and each costs about 1 KB."""

_MOST_YOUNG = 32
"""Of those that have not continued often enough to be believed: random reads pass through here, and
must not push the others out."""

_MOST_READERS = 256
_NEAR_READS = 2
"""Requests overtake each other: a read that begins within so many of its size is a continuation."""

_MOST_NEAR_BYTES = 2 * MIB
_PLACE_SHIFT = 21
"""Streams are found by the 2 MiB in which they go on."""

_STRIDES = 2
"""So many equal jumps, after the first, make a stride."""


ESTABLISHED_READS = 3
"""A stream that has continued so often is believed."""


class Kind(Enum):
    """How an access continues what was read before."""

    __hash__ = object.__hash__  # that of Enum is Python code

    FORWARD = "sequential"
    BACKWARD = "backward"
    STRIDED = "strided"
    RANDOM = "random"


_FORWARD, _BACKWARD, _STRIDED = Kind.FORWARD, Kind.BACKWARD, Kind.STRIDED
"""To look a member up in its class takes as long as all else that is done with it."""


@dataclass(slots=True, eq=False)
class Stream:
    """Reads that continue each other. `begin` and `end` are the bytes that they cover so far."""

    number: int
    """Its name among the streams of its image."""
    reader: int
    begin: int
    end: int
    kind: Kind
    reads: int
    size_bytes: int
    """Of its last read."""
    near_bytes: int
    """How far from its end a read may begin that continues it."""
    last_s: float
    seen: int = 0
    """The count of accesses of its image when it was last continued."""
    stride_bytes: int = 0
    run_bytes: int = 0
    ahead_to: int | None = None
    """Of whoever runs ahead of it: how far (the next chunk; of a stride, the next byte)."""
    noted_bytes: int = 0
    """The length at which it was taken for ended."""
    places: tuple[int, ...] = ()
    shelf: _Shelf | None = None
    """Where it is kept; None: it is forgotten."""

    @property
    def is_established(self) -> bool:
        """Whether it has continued often enough to be believed."""
        return self.reads >= ESTABLISHED_READS


_Shelf = OrderedDict[int, Stream]
"""Streams by number."""


@dataclass(slots=True)
class _Reader:
    offset: int
    jump_bytes: int = 0
    jumps: int = 0
    stride: Stream | None = None
    run: Stream | None = None
    """Its last one that was believed."""


class Streams:
    """The streams of one image."""

    def __init__(self) -> None:
        self.lengths = RunLengths()
        self._streams: _Shelf = OrderedDict()
        """Those that are believed, the one continued last at the end."""
        self._young: _Shelf = OrderedDict()
        self._places: dict[int, list[Stream]] = {}
        self._near_bytes = 0
        """No stream is met from farther, but by a larger read."""
        self._readers: OrderedDict[int, _Reader] = OrderedDict()
        self.accesses = 0
        self._made = 0

    def __len__(self) -> int:
        return len(self._streams) + len(self._young)

    def observe(self, access: Access, chunk_bytes: int) -> Stream:
        """Return the stream that an access belongs to, a new one if it continues none."""
        offset, size = access.offset_bytes, access.size_bytes
        if offset < 0:
            offset, size = access.first * chunk_bytes, access.count * chunk_bytes
        self.accesses += 1
        reader = self._readers.get(access.reader)
        went_on_bytes = ended_bytes = 0
        stream = self._continued(access.reader, offset, size)
        if stream is None and reader is not None:
            stream = self._strided(reader, access, offset)
        if stream is None:
            stream = self._begun(access, offset, size)
        else:
            self._go_on(stream, access, offset, size)
            went_on_bytes, stream.noted_bytes = stream.noted_bytes, 0
        self._near_bytes = max(self._near_bytes, stream.near_bytes)
        stream.seen, stream.last_s = self.accesses, access.time_s
        self._keep(stream)
        self._place(stream)
        if reader is None:
            reader = self._met_reader(access.reader, offset)
        else:
            reader.offset = offset
            self._readers.move_to_end(access.reader)
        if reader.run is not stream and stream.reads >= ESTABLISHED_READS:
            if reader.run is not None:
                ended_bytes = _noted_end(reader.run)  # until it goes on
            reader.run = stream
        if went_on_bytes or ended_bytes:
            self.lengths.exchange(went_on_bytes, ended_bytes)
        return stream

    def quiet(self, accesses: int, before_s: float) -> list[Stream]:
        """Take out and return the streams that both time and `accesses` of others left behind."""
        gone = []
        for stream in self._streams.values():
            if stream.last_s >= before_s or stream.seen > self.accesses - accesses:
                break  # the later ones were continued later
            gone.append(stream)
        for stream in gone:
            self._forget(stream)
        return gone

    def _continued(self, reader: int, offset: int, size: int) -> Stream | None:
        """Return the stream that goes on here: the same reader's before another's.

        A read continues a stream that is near its end, or near its beginning.
        """
        end = offset + size
        near_read = min(_NEAR_READS * size, _MOST_NEAR_BYTES)
        farthest = max(near_read, self._near_bytes)
        found = None
        for place in _places_of(offset, offset - farthest, end + farthest):
            for stream in self._places.get(place, ()):
                near = max(stream.near_bytes, near_read)
                kind = stream.kind
                if (kind is _BACKWARD or not -near <= offset - stream.end <= near) and (
                    kind is _FORWARD or not -near <= end - stream.begin <= near
                ):
                    continue
                if stream.reader == reader:
                    return stream
                if found is None:
                    found = stream
        return found

    def _strided(self, reader: _Reader, access: Access, offset: int) -> Stream | None:
        """Return the stride of a reader, if its jumps are of one distance."""
        jump_bytes = offset - reader.offset
        if jump_bytes != reader.jump_bytes or not jump_bytes:
            reader.jump_bytes, reader.jumps, reader.stride = jump_bytes, 0, None
            return None
        reader.jumps += 1
        if reader.jumps < _STRIDES:
            return None
        if reader.stride is None or reader.stride.shelf is None:
            stride = self._new(access, offset, _STRIDED, reader.jumps)
            stride.stride_bytes = jump_bytes
            reader.stride = stride
        return reader.stride

    def _begun(self, access: Access, offset: int, size: int) -> Stream:
        """Return a new stream, of reads that continue none."""
        kind = Kind.RANDOM
        if access.reads > 1:
            kind = _BACKWARD if access.is_backward else _FORWARD
        stream = self._new(access, offset, kind, access.reads)
        stream.end += size
        stream.run_bytes = size
        _note_size(stream, size // access.reads)
        return stream

    def _new(self, access: Access, offset: int, kind: Kind, reads: int) -> Stream:
        self._made += 1
        return Stream(self._made, access.reader, offset, offset, kind, reads, 0, 0, access.time_s)

    def _go_on(self, stream: Stream, access: Access, offset: int, size: int) -> None:
        end = offset + size
        kind = stream.kind
        if kind is _STRIDED:
            stream.begin, stream.end = offset, end
            stream.run_bytes += size
        elif end > stream.end:
            if kind is _BACKWARD:  # it has turned
                stream.reads, stream.run_bytes = 1, 0
            stream.kind = _FORWARD
            stream.run_bytes += end - max(stream.end, offset)
            stream.end = end
        elif offset < stream.begin:
            if kind is _FORWARD and stream.reads > 1:
                stream.reads, stream.run_bytes = 1, 0
            stream.kind = _BACKWARD
            stream.run_bytes += min(stream.begin, end) - offset
            stream.begin = offset
        else:
            return  # what it has read already
        stream.reads += access.reads
        stream.reader = access.reader
        _note_size(stream, size // access.reads)

    def _keep(self, stream: Stream) -> None:
        """Note that a stream goes on, and how far it is to be believed."""
        is_established = stream.reads >= ESTABLISHED_READS
        shelf = self._streams if is_established else self._young
        if stream.shelf is shelf:
            if is_established:
                shelf.move_to_end(stream.number)
            return
        if stream.shelf is not None:
            del stream.shelf[stream.number]
        shelf[stream.number] = stream
        stream.shelf = shelf
        if len(shelf) > (MOST_STREAMS if is_established else _MOST_YOUNG):
            self._forget(next(iter(shelf.values())))

    def _place(self, stream: Stream) -> None:
        """Note where a stream goes on, as its last one continued."""
        kind = stream.kind
        if kind is _STRIDED:
            return
        if kind is _FORWARD:
            places: tuple[int, ...] = (stream.end >> _PLACE_SHIFT,)
        elif kind is _BACKWARD:
            places = (stream.begin >> _PLACE_SHIFT,)
        else:
            begin, end = stream.begin >> _PLACE_SHIFT, stream.end >> _PLACE_SHIFT
            places = (begin,) if begin == end else (begin, end)
        if places != stream.places:
            self._take_from_places(stream)
            stream.places = places
            for place in places:
                self._places.setdefault(place, []).append(stream)

    def _forget(self, stream: Stream) -> None:
        if stream.shelf is not None:
            del stream.shelf[stream.number]
            stream.shelf = None
        self._take_from_places(stream)
        if stream.is_established and (ended_bytes := _noted_end(stream)):
            self.lengths.add(ended_bytes)

    def _take_from_places(self, stream: Stream) -> None:
        for place in stream.places:
            others = self._places[place]
            others.remove(stream)
            if not others:
                del self._places[place]
        stream.places = ()

    def _met_reader(self, number: int, offset: int) -> _Reader:
        reader = self._readers[number] = _Reader(offset)
        if len(self._readers) > _MOST_READERS:
            self._readers.popitem(last=False)
        return reader


def _places_of(offset: int, first: int, last: int) -> Sequence[int]:
    """Return the places from one offset to another, the one of a third before all others."""
    first, here, last = first >> _PLACE_SHIFT, offset >> _PLACE_SHIFT, last >> _PLACE_SHIFT
    if first == last:
        return (here,)
    return here, *range(first, here), *range(here + 1, last + 1)


def _noted_end(stream: Stream) -> int:
    """A run is taken for ended; returns its length, 0 if it was before, or is none."""
    if stream.noted_bytes or stream.kind is _STRIDED:
        return 0
    stream.noted_bytes = stream.run_bytes
    return stream.run_bytes


def _note_size(stream: Stream, size_bytes: int) -> None:
    if size_bytes != stream.size_bytes:
        stream.size_bytes = size_bytes
        stream.near_bytes = min(_NEAR_READS * size_bytes, _MOST_NEAR_BYTES)
