"""Shared memory as C11 lets threads see it, and an explorer of everything that can happen in it.

A location remembers all values it ever had. A thread has a *view*: for each location the oldest
value it may still see. A load may return any value from there on, old ones as well: that is what
processors and compilers reorder. Release and acquire hand views over, as C11 says: a release store
leaves its thread's view with the value, an acquire load (or a relaxed one and a fence later) takes
it. Every location has one writer at a time here, so a store is always the newest value.

A thread's program is a generator that yields operations and gets the values of its loads. The
explorer runs it once for each sequence of values, so that the sequence is the thread's state.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

Value = int | str
View = tuple[int, ...]
Message = tuple[Value, View]


class Order(Enum):
    RELAXED = "relaxed"
    ACQUIRE = "acquire"
    RELEASE = "release"


class Load(NamedTuple):
    at: str
    order: Order = Order.ACQUIRE
    only: Value | None = None
    """Wait until this value can be seen."""


class Store(NamedTuple):
    at: str
    value: Value
    order: Order = Order.RELEASE


class Fence(NamedTuple):
    """Acquire and release at once."""


Operation = Load | Store | Fence
Program = Callable[[], Generator[Operation, Value, object]]


class Thread(NamedTuple):
    program: str
    seen: tuple[Value, ...]
    """What its operations have returned so far."""
    view: View
    pending: View
    """What its relaxed loads have seen, until a fence."""
    fenced: View
    """Its view at its last fence: what its relaxed stores hand over."""


class State(NamedTuple):
    memory: tuple[tuple[Message, ...], ...]
    threads: tuple[Thread, ...]
    deaths: int


@dataclass(frozen=True)
class Ended:
    """A thread that has returned `result`."""

    result: object


class Violation(NamedTuple):
    program: str
    result: object
    seen: tuple[Value, ...]


def _join(one: View, other: View) -> View:
    return tuple(map(max, one, other))


def _moved(view: View, location: int, to: int) -> View:
    return (*view[:location], max(view[location], to), *view[location + 1 :])


class Explorer:
    """All runs of some threads over some locations.

    `initial` names the locations and their first values. `mortal` names programs that may be killed
    between any two operations, and the program that takes over then (it sees all that was stored).
    `is_right` judges what a program returned.
    """

    def __init__(
        self,
        initial: dict[str, Value],
        programs: dict[str, Program],
        started: list[str],
        is_right: Callable[[object], bool],
        mortal: dict[str, str] | None = None,
        deaths: int = 0,
    ) -> None:
        self._locations = {name: number for number, name in enumerate(initial)}
        self._programs = programs
        self._is_right = is_right
        self._mortal = mortal or {}
        self._next: dict[Hashable, Operation | Ended] = {}
        zero = (0,) * len(initial)
        self._initial = State(
            tuple(((value, zero),) for value in initial.values()),
            tuple(Thread(name, (), zero, zero, zero) for name in started),
            deaths,
        )
        self.states = 0
        self.accepted: set[object] = set()
        """What the programs have returned in some run, to see that the right thing can happen."""

    def violation(self) -> Violation | None:
        """Return the first wrong result found, or None when there is none in any run."""
        todo = [self._initial]
        known = {self._initial}
        while todo:
            state = todo.pop()
            self.states += 1
            for after in self._after(state):
                if isinstance(after, Violation):
                    return after
                if after not in known:
                    known.add(after)
                    todo.append(after)
        return None

    def _operation(self, thread: Thread) -> Operation | Ended:
        key = (thread.program, thread.seen)
        if key not in self._next:
            run = self._programs[thread.program]()
            try:
                operation = next(run)
                for value in thread.seen:
                    operation = run.send(value)
                self._next[key] = operation
            except StopIteration as end:
                self._next[key] = Ended(end.value)
        return self._next[key]

    def _after(self, state: State) -> Iterator[State | Violation]:
        for number, thread in enumerate(state.threads):
            operation = self._operation(thread)
            if isinstance(operation, Ended):
                self.accepted.add(operation.result)
                if not self._is_right(operation.result):
                    yield Violation(thread.program, operation.result, thread.seen)
                continue
            for memory, moved in self._steps(state.memory, thread, operation):
                threads = (*state.threads[:number], moved, *state.threads[number + 1 :])
                yield State(memory, threads, state.deaths)
            if state.deaths and thread.program in self._mortal:
                newest = tuple(len(messages) - 1 for messages in state.memory)
                successor = Thread(self._mortal[thread.program], (), newest, newest, newest)
                threads = (*state.threads[:number], successor, *state.threads[number + 1 :])
                yield State(state.memory, threads, state.deaths - 1)

    def _steps(
        self, memory: tuple[tuple[Message, ...], ...], thread: Thread, operation: Operation
    ) -> Iterator[tuple[tuple[tuple[Message, ...], ...], Thread]]:
        if isinstance(operation, Fence):
            view = _join(thread.view, thread.pending)
            yield memory, Thread(thread.program, (*thread.seen, 0), view, view, view)
            return
        location = self._locations[operation.at]
        messages = memory[location]
        if isinstance(operation, Store):
            view = _moved(thread.view, location, len(messages))
            released = view if operation.order is Order.RELEASE else thread.fenced
            message = (operation.value, _moved(released, location, len(messages)))
            stored = (*memory[:location], (*messages, message), *memory[location + 1 :])
            pending = _join(thread.pending, view)
            yield stored, Thread(thread.program, (*thread.seen, 0), view, pending, thread.fenced)
            return
        for at in range(thread.view[location], len(messages)):
            value, released = messages[at]
            if operation.only is not None and value != operation.only:
                continue
            view = _moved(thread.view, location, at)
            pending = _join(_join(thread.pending, released), view)
            if operation.order is Order.ACQUIRE:
                view = _join(view, released)
            seen = (*thread.seen, value)
            yield memory, Thread(thread.program, seen, view, pending, thread.fenced)
