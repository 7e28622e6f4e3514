"""Ctrl-C and SIGTERM during a batch: three levels of how soon to stop."""

from __future__ import annotations

import contextlib
import queue
import signal
import socket
import threading
from collections.abc import Callable
from enum import IntEnum
from types import TracebackType
from typing import Any


class Level(IntEnum):
    """When to stop."""

    NEVER = 0
    PICTURE = 1
    """After the current pictures."""
    STEP = 2
    """After the current steps; their pictures are not finished."""
    NOW = 3


class Stop:
    """Turns signals into levels: Ctrl-C raises the level by one, SIGTERM to at least ``STEP``, a second one to ``NOW``.

    Use as a context manager; it restores the previous signal handlers at its end. Outside the main thread, where
    Python allows no signal handlers, nothing changes the level. ``wake_up`` is a socket that becomes
    readable at each change, so that it can be waited for together with processes. ``NOW`` raises a KeyboardInterrupt
    wherever the program is. After ``end`` signals do nothing.

    Args:
        on_change: is called with each level, in a thread of its own, and has returned at the end. The signal may come
            amid a line that is being printed, and the stream refuses another one before that one is written.
    """

    def __init__(self, on_change: Callable[[Level], None] = lambda _level: None) -> None:
        self.level = Level.NEVER
        self.terminated = False
        self._on_change = on_change
        self._ended = False
        self._changes: queue.SimpleQueue[Level | None] = queue.SimpleQueue()  # which a signal handler may put into
        self._telling = threading.Thread(target=self._tell, daemon=True)

    def __enter__(self) -> Stop:
        self._telling.start()
        # Not a pipe: Windows can only wait on sockets.
        self.wake_up, self._far = socket.socketpair()
        self._far.setblocking(False)
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self.wake_up.close()
        self._far.close()

    def end(self) -> None:
        """Ignore signals from now on: nothing is left to be stopped."""
        self._ended = True
        self._changes.put(None)
        self._telling.join()

    def acknowledge(self) -> None:
        """Call when ``wake_up`` was readable and the level has been read."""
        self.wake_up.recv(64)

    def _tell(self) -> None:
        while (level := self._changes.get()) is not None:
            self._on_change(level)

    def _handle(self, number: int, _frame: Any) -> None:
        if self._ended:
            return
        least = Level.STEP if number == signal.SIGTERM else Level.PICTURE
        self.terminated = self.terminated or number == signal.SIGTERM
        self.level = Level(min(max(self.level + 1, least), Level.NOW))
        with contextlib.suppress(BlockingIOError):  # it is readable already
            self._far.send(b".")
        self._changes.put(self.level)
        if self.level is Level.NOW:
            raise KeyboardInterrupt
