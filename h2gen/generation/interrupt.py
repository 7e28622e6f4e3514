"""Ctrl-C while a session makes pictures: the first one stops after the current step, the second at once."""

from __future__ import annotations

import _thread
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from h2gen.generation.session import Session


@contextmanager
def stop_on_ctrl_c(session: Session, on_stop: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Turn the first Ctrl-C into ``session.interrupt()``. Only for the main thread, like all signal handlers.

    Args:
        session: makes pictures inside.
        on_stop: is called in a thread of its own, and has returned at the end. The signal may come amid a line that is
            being printed, and the stream refuses another one before that one is written.
    """
    telling: list[threading.Event] = []

    def tell(told: threading.Event) -> None:
        try:
            on_stop()
        finally:
            told.set()

    def stop(_signal: int, _frame: Any) -> None:
        session.interrupt()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        told = threading.Event()
        _thread.start_new_thread(tell, (told,))
        telling.append(told)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        session.forget_interrupt()  # it came after the last step and must not stop the next picture
        for told in telling:
            told.wait()  # what it prints comes before what follows


@contextmanager
def interrupts_ignored() -> Iterator[None]:
    """Around telling how something has ended: one more Ctrl-C must not cut that off."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def unblock_interrupts() -> None:
    """Undo ``interrupts_blocked``, which a process inherits from its parent."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


@contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Around starting a process: Ctrl-C would end it before it could say that it ignores it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
