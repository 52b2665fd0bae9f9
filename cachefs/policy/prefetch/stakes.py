"""Stakes: what wrong guesses about the runs of one image may cost its readers. Pure.

No histogram of lengths is right about a reader whose runs end anywhere; so what guesses may lose
is bounded by what readers fetch, which earns a small share. A run that has lasted is evidence: a
window of a quarter of it stakes nothing. What goes beyond that is staked until it is read over, and
what is ahead of a run that was left for longer than it had lasted is lost, until somebody reads it.
While something is owed a run is followed by one chunk, or by a small part of its length: that
covers nearly as much, loses little, and only comes later.

Only what is fetched costs anything: of what lies in L1 already a guess costs nothing, right or
wrong. So a guess counts for as much as was fetched lately of those that were read over.
"""

from __future__ import annotations

from dataclasses import dataclass

from cachefs.units import MIB

SHARE = 1 / 50
"""Of the bytes that readers fetch, or use after they were fetched ahead: so much may be lost."""
FLOOR_BYTES = MIB
"""May be lost before anything was read: a file of some MiB is over before it has earned any."""
MOST_SAVED_BYTES = 4 * MIB
"""May be lost at once by a reader that was right for hours, and begins to jump."""
MOST_OWED_BYTES = 16 * MIB
"""More is forgiven; it takes 640 MiB of reads to earn that."""
_EVIDENT_SHARE = 1 / 4
_CAUTION = 6.0
"""So many times the share that was lost lately, for what was read over, there is less evidence."""
_OWING_SHARE = 1 / 32
"""Of the length of a run: the window that it gets while something is owed, and a chunk at least."""
_MOST_LOST = 8192
"""Chunks that are remembered: some are used after all."""
_PRIOR_BYTES = 4.0 * MIB
_MEMORY_BYTES = 64.0 * MIB


@dataclass(slots=True)
class _Guess:
    """What a run is ahead of its reader."""

    ahead: range
    run_bytes: int
    read_bytes: int
    """What was read of the image when it went on last."""
    worth_bytes: float
    """What a chunk of it costs, if it is lost."""
    staked_bytes: float


class Stakes:
    """The account of one image in chunks of a size; runs have numbers."""

    __slots__ = (
        "_chunk_bytes",
        "_ended",
        "_guesses",
        "_lost",
        "_passed",
        "_read_bytes",
        "_used",
        "free_bytes",
    )

    def __init__(self, chunk_bytes: int) -> None:
        self.free_bytes = float(FLOOR_BYTES)
        """Neither staked nor lost; less than 0: owed."""
        self._chunk_bytes = chunk_bytes
        self._read_bytes = 0
        self._guesses: dict[int, _Guess] = {}
        """The one that went on last at the end."""
        self._lost: dict[int, float] = {}
        """Chunk: what it has cost."""
        self._passed = self._used = _PRIOR_BYTES
        """Guesses that were read over, fading; and those of them that had been fetched."""
        self._ended = 0.0
        """Guesses that were not, as their runs ended, fading alike."""

    def read(self, count: int, *, is_hit: bool) -> None:
        """So many chunks were read; where it was no hit, they had to be fetched."""
        self._read_bytes += count * self._chunk_bytes
        if not is_hit:
            self._earn(count)

    def used(self, chunk: int) -> None:
        """A chunk that was fetched ahead was read."""
        self.cost(1)
        self._earn(1)
        if chunk in self._lost:
            self._find(chunk)

    def cost(self, count: int) -> None:
        """So many chunks that were read had been fetched, for a run or for another reason."""
        self._used += count * self._chunk_bytes

    def window_bytes(self, number: int, run_bytes: int) -> int:
        """Return how far a run of this length may be run ahead of."""
        self._settle()
        own = self._guesses.get(number)
        free_bytes = self.free_bytes + (own.staked_bytes if own is not None else 0.0)
        if free_bytes < 0:
            return max(self._chunk_bytes, int(run_bytes * _OWING_SHARE))
        return max(self._chunk_bytes, int(self._evident_bytes(run_bytes) + free_bytes))

    def goes_on(self, number: int, run_bytes: int, ahead: range) -> None:
        """A run has become so long, and these chunks ahead of it are wished for and not read."""
        before = self._guesses.pop(number, None)
        if before is not None:
            self.free_bytes += before.staked_bytes
            self._pass(len(before.ahead) - len(ahead))
        if ahead:
            if self._lost:
                for chunk in ahead:
                    if chunk in self._lost:
                        self._find(chunk)
            worth = min(1.0, self._used / self._passed)
            doubted_bytes = len(ahead) * self._chunk_bytes - self._evident_bytes(run_bytes)
            staked_bytes = worth * max(0.0, doubted_bytes)
            self.free_bytes -= staked_bytes
            self._guesses[number] = _Guess(
                ahead, run_bytes, self._read_bytes, worth * self._chunk_bytes, staked_bytes
            )

    def _settle(self) -> None:
        """Take as lost what was left for longer than it had lasted."""
        while self._guesses:
            number, guess = next(iter(self._guesses.items()))
            if self._read_bytes - guess.read_bytes <= guess.run_bytes:
                return
            del self._guesses[number]
            self.free_bytes += guess.staked_bytes
            for chunk in guess.ahead:
                if chunk not in self._lost:
                    self._lost[chunk] = guess.worth_bytes
                    self.free_bytes -= guess.worth_bytes
                    self._ended += guess.worth_bytes
            while len(self._lost) > _MOST_LOST:
                del self._lost[next(iter(self._lost))]

    def _find(self, chunk: int) -> None:
        """A lost chunk is lost no more."""
        cost_bytes = self._lost.pop(chunk)
        self.free_bytes += cost_bytes
        self._ended = max(0.0, self._ended - cost_bytes)

    def _evident_bytes(self, run_bytes: int) -> float:
        """Return how far ahead of a run of this length nothing is staked."""
        return run_bytes * _EVIDENT_SHARE * max(0.0, 1 - _CAUTION * self._ended / self._passed)

    def _pass(self, count: int) -> None:
        if count > 0:
            self._passed += count * self._chunk_bytes
            if self._passed > _MEMORY_BYTES:
                self._passed /= 2
                self._used /= 2
                self._ended /= 2

    def _earn(self, count: int) -> None:
        free_bytes = self.free_bytes + SHARE * count * self._chunk_bytes
        self.free_bytes = min(MOST_SAVED_BYTES, max(-MOST_OWED_BYTES, free_bytes))
