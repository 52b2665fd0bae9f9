"""What a policy is told of a chunk that comes into L1."""

from __future__ import annotations

import zlib

from cachefs.model.chunk import ChunkRef
from cachefs.policy.evict.seam import Arrival

_PACK_BITS = 14
_OFFSET_BITS = 26
"""Packs are 16 MiB, and one chunk may come on top."""


_COST_OF_L2 = 0.25
"""Of a fetch from L2, compared with one from the store: a millisecond beside several. Not less: it
may be gone from there by the time that it is wanted again."""


def arrival_of(ref: ChunkRef, *, from_l2: bool = False, is_prefetched: bool = False) -> Arrival:
    """Return what a policy may know of a chunk.

    Its place is that of its frame: packs are in image order, so that the next chunk of the image,
    if it was imported with this one, is where this frame ends.
    """
    pack = zlib.crc32(ref.pack) & ((1 << _PACK_BITS) - 1)
    offset = ref.offset & ((1 << _OFFSET_BITS) - 1)
    return Arrival(
        key=int.from_bytes(ref.id[:8], "little"),
        place=(pack << _OFFSET_BITS) | offset,
        span=ref.frame_bytes,
        cost=_COST_OF_L2 if from_l2 else 1.0,
        frame_share=ref.frame_bytes / ref.plain_bytes,
        is_prefetched=is_prefetched,
    )
