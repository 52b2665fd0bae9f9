"""The supervisor's loop: file descriptors, named timers, signals; one thread.

An action that raises ends the loop: MountError is the way to give up a start.
"""

import os
import selectors
import signal
import time
from collections.abc import Callable

Action = Callable[[], None]


class EventLoop:
    """Calls an action when a file descriptor is readable, a time has come, or a signal."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: dict[str, tuple[float, Action]] = {}

    def watch(self, fd: int, action: Action) -> None:
        """Call the action whenever the file descriptor is readable."""
        self._selector.register(fd, selectors.EVENT_READ, action)

    def unwatch(self, fd: int) -> None:
        """Stop to watch a file descriptor, if it is watched; before it is closed."""
        if fd in self._selector.get_map():
            self._selector.unregister(fd)

    def set_timer(self, name: str, wait_s: float, action: Action) -> None:
        """Call the action once, after a time; a timer of the same name is replaced."""
        self._timers[name] = (time.monotonic() + wait_s, action)

    def cancel_timer(self, *names: str) -> None:
        """Forget timers; they need not exist."""
        for name in names:
            self._timers.pop(name, None)

    def watch_signals(self, numbers: set[int], action: Action) -> None:
        """Call the action for these signals, in the loop and not in the handler."""
        read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
        for number in numbers:
            signal.signal(number, lambda *_: None)

        def on_readable() -> None:
            if numbers & set(os.read(read_fd, 64)):
                action()

        self.watch(read_fd, on_readable)

    def run_once(self) -> None:
        """Wait for the next events, and call their actions."""
        wait_s = None
        if self._timers:
            wait_s = max(0.0, min(when for when, _ in self._timers.values()) - time.monotonic())
        for key, _ in self._selector.select(wait_s):
            if key.fd in self._selector.get_map():  # an action before this one may have ended it
                key.data()
        now = time.monotonic()
        for name, (when, action) in list(self._timers.items()):
            if when <= now and self._timers.get(name) == (when, action):
                del self._timers[name]
                action()
