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


class Kind(Enum):
    """How an access continues what was read before."""

    FORWARD = "sequential"
    BACKWARD = "backward"
    STRIDED = "strided"
    RANDOM = "random"


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

    @property
    def is_established(self) -> bool:
        """Whether it has continued often enough to be believed."""
        return self.reads >= 3


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
        self._streams: OrderedDict[int, Stream] = OrderedDict()
        """Those that are believed, by number, the one continued last at the end."""
        self._young: OrderedDict[int, Stream] = OrderedDict()
        self._places: dict[int, list[Stream]] = {}
        self._readers: OrderedDict[int, _Reader] = OrderedDict()
        self.accesses = 0
        self._made = 0

    def __len__(self) -> int:
        return len(self._streams) + len(self._young)

    def observe(self, access: Access, chunk_bytes: int) -> Stream:
        """Return the stream that an access belongs to, a new one if it continues none."""
        if access.offset_bytes < 0:
            offset, size = access.first * chunk_bytes, access.count * chunk_bytes
        else:
            offset, size = access.offset_bytes, access.size_bytes
        self.accesses += 1
        stream = self._continued(access.reader, offset, size)
        if stream is None:
            stream = self._strided(access, offset, size)
        if stream is None:
            kind = Kind.RANDOM
            if access.reads > 1:
                kind = Kind.BACKWARD if access.is_backward else Kind.FORWARD
            stream = self._new(access, offset, offset + size, kind, access.reads)
            stream.run_bytes, stream.size_bytes = size, size // access.reads
        else:
            self._go_on(stream, access, offset, size)
            if stream.noted_bytes:
                self.lengths.take_back(stream.noted_bytes)
                stream.noted_bytes = 0
        stream.seen, stream.last_s = self.accesses, access.time_s
        self._place(stream)
        reader = self._note_reader(access.reader, offset)
        if stream.is_established and reader.run is not stream:
            if reader.run is not None:
                self._note_end(reader.run)  # until it goes on
            reader.run = stream
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
        """Return the stream that goes on here: the same reader's before another's."""
        found = None
        place = offset >> _PLACE_SHIFT
        for at in (place, place - 1, place + 1):
            for stream in self._places.get(at, ()):
                if _meets(stream, offset, size):
                    if stream.reader == reader:
                        return stream
                    found = found or stream
        return found

    def _strided(self, access: Access, offset: int, size: int) -> Stream | None:
        """Return the stride of this reader, if its jumps are of one distance."""
        reader = self._readers.get(access.reader)
        if reader is None:
            return None
        jump_bytes = offset - reader.offset
        if jump_bytes != reader.jump_bytes or not jump_bytes:
            reader.jump_bytes, reader.jumps, reader.stride = jump_bytes, 0, None
            return None
        reader.jumps += 1
        if reader.jumps < _STRIDES:
            return None
        if reader.stride is None or not self._knows(reader.stride):
            reader.stride = self._new(access, offset, offset, Kind.STRIDED, reader.jumps)
            reader.stride.stride_bytes = jump_bytes
        return reader.stride

    def _new(self, access: Access, begin: int, end: int, kind: Kind, reads: int) -> Stream:
        self._made += 1
        return Stream(
            self._made, access.reader, begin, end, kind, reads, end - begin, access.time_s
        )

    def _go_on(self, stream: Stream, access: Access, offset: int, size: int) -> None:
        end = offset + size
        if stream.kind is Kind.STRIDED:
            stream.begin, stream.end = offset, end
            stream.run_bytes += size
        elif end > stream.end:
            if stream.kind is Kind.BACKWARD:  # it has turned
                stream.reads, stream.run_bytes = 1, 0
            stream.kind = Kind.FORWARD
            stream.run_bytes += end - max(stream.end, offset)
            stream.end = end
        elif offset < stream.begin:
            if stream.kind is Kind.FORWARD and stream.reads > 1:
                stream.reads, stream.run_bytes = 1, 0
            stream.kind = Kind.BACKWARD
            stream.run_bytes += min(stream.begin, end) - offset
            stream.begin = offset
        else:
            return  # what it has read already
        stream.reads += access.reads
        stream.size_bytes = size // access.reads
        stream.reader = access.reader

    def _place(self, stream: Stream) -> None:
        """Note where a stream goes on, as its last one continued."""
        if stream.is_established:
            self._young.pop(stream.number, None)
            self._streams[stream.number] = stream
            self._streams.move_to_end(stream.number)
            if len(self._streams) > MOST_STREAMS:
                self._forget(next(iter(self._streams.values())))
        else:
            self._streams.pop(stream.number, None)  # it has turned
            self._young[stream.number] = stream
            if len(self._young) > _MOST_YOUNG:
                self._forget(next(iter(self._young.values())))
        if stream.kind is Kind.STRIDED:
            return
        if stream.kind is Kind.FORWARD:
            places: tuple[int, ...] = (stream.end >> _PLACE_SHIFT,)
        elif stream.kind is Kind.BACKWARD:
            places = (stream.begin >> _PLACE_SHIFT,)
        else:
            begin, end = stream.begin >> _PLACE_SHIFT, stream.end >> _PLACE_SHIFT
            places = (begin,) if begin == end else (begin, end)
        if places != stream.places:
            self._take_from_places(stream)
            stream.places = places
            for place in places:
                self._places.setdefault(place, []).append(stream)

    def _knows(self, stream: Stream) -> bool:
        return stream.number in self._streams or stream.number in self._young

    def _forget(self, stream: Stream) -> None:
        self._streams.pop(stream.number, None)
        self._young.pop(stream.number, None)
        self._take_from_places(stream)
        if stream.is_established:
            self._note_end(stream)

    def _note_end(self, stream: Stream) -> None:
        if not stream.noted_bytes and stream.kind is not Kind.STRIDED:
            stream.noted_bytes = stream.run_bytes
            self.lengths.add(stream.run_bytes)

    def _take_from_places(self, stream: Stream) -> None:
        for place in stream.places:
            others = self._places[place]
            others.remove(stream)
            if not others:
                del self._places[place]
        stream.places = ()

    def _note_reader(self, reader: int, offset: int) -> _Reader:
        known = self._readers.get(reader)
        if known is None:
            known = self._readers[reader] = _Reader(offset)
            if len(self._readers) > _MOST_READERS:
                self._readers.popitem(last=False)
        else:
            known.offset = offset
            self._readers.move_to_end(reader)
        return known


def _meets(stream: Stream, offset: int, size: int) -> bool:
    """Whether a read continues a stream: it is near its end, or near its beginning."""
    near = min(_NEAR_READS * max(size, stream.size_bytes), _MOST_NEAR_BYTES)
    if stream.kind is not Kind.BACKWARD and -near <= offset - stream.end <= near:
        return True
    if stream.kind is Kind.FORWARD:
        return False
    return -near <= offset + size - stream.begin <= near
