"""The callers of a transformer that several threads share: each trajectory has its own engine."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable

from h2gen.cache.engine import Engine
from h2gen.cache.inputs import Inputs


class OfThread(threading.local):
    """What belongs to one thread."""

    engine: Engine | None = None
    """That of its last pass."""


class Callers:
    """The engines of one cache, one per trajectory in progress; a thread that calls again keeps its engine.

    Args:
        new_engine: makes one.
    """

    def __init__(self, new_engine: Callable[[], Engine]) -> None:
        self._new_engine = new_engine
        self._engines: weakref.WeakSet[Engine] = weakref.WeakSet()  # an engine dies with its thread
        self.of_thread = OfThread()
        self._lock = threading.Lock()

    @property
    def own(self) -> Engine | None:
        """The engine of this thread's last pass, unless its trajectory has gone on in another thread."""
        engine = self.of_thread.engine
        return engine if engine is not None and engine.thread == threading.get_ident() else None

    @property
    def current(self) -> Engine | None:
        """The engine of the pass running in this thread; None if there is none, or it runs without the cache."""
        engine = self.own
        return engine if engine is not None and engine.step is not None else None

    def engine_for(self, inputs: Inputs) -> Engine:
        """The engine for a new pass: the one that follows its trajectory, otherwise the thread's own."""
        with self._lock:
            engine = own = self.own
            if own is None or not own.knows(inputs):
                idle = [each for each in self._engines if each is not own and not each.busy]
                engine = next((each for each in idle if each.knows(inputs)), own) or self._new_engine()
            assert engine is not None
            engine.busy, engine.thread = True, threading.get_ident()
            self._engines.add(engine)
            self.of_thread.engine = engine
            return engine

    def forget(self) -> None:
        """Drop everything that is kept, except by passes that are running in other threads."""
        with self._lock:
            engines = [*self._engines]
        for engine in engines:
            if engine is self.own or not engine.busy:
                engine.forget()
