"""How soon a run should end: three levels, raised by signals, that whoever waits on the run can wait on too."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Callable
from enum import IntEnum
from types import TracebackType
from typing import Any


class Level(IntEnum):
    """When to stop."""

    NEVER = 0
    PICTURE = 1
    """After the pictures in hand."""
    STEP = 2
    """After the steps in hand; their pictures are given up."""
    NOW = 3


class Stop:
    """Turns signals into levels: Ctrl-C raises the level by one, SIGTERM to ``STEP`` at least, a second one to ``NOW``.

    Use as a context manager in the main thread; the handlers of before come back at its end. ``bell`` becomes
    readable at each change, so that a wait on processes ends with it. ``on_change`` is told of each level, from
    within the signal handler. At ``NOW`` a KeyboardInterrupt is raised where the program is.
    """

    def __init__(self, on_change: Callable[[Level], None] = lambda _level: None) -> None:
        self.level = Level.NEVER
        self.terminated = False
        self._on_change = on_change

    def __enter__(self) -> Stop:
        # Not a pipe: Windows waits for sockets only.
        self.bell, self._far = socket.socketpair()
        self._far.setblocking(False)
        self._before: dict[int, Any] = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self.bell.close()
        self._far.close()

    def acknowledge(self) -> None:
        """Call when ``bell`` was readable and the level has been seen."""
        self.bell.recv(64)

    def _handle(self, number: int, _frame: Any) -> None:
        least = Level.STEP if number == signal.SIGTERM else Level.PICTURE
        self.terminated = self.terminated or number == signal.SIGTERM
        self.level = Level(min(max(self.level + 1, least), Level.NOW))
        with contextlib.suppress(BlockingIOError):  # it rings already
            self._far.send(b".")
        self._on_change(self.level)
        if self.level is Level.NOW:
            raise KeyboardInterrupt
