"""Who calls a transformer that several threads share: each trajectory has an engine of its own."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import cast

from h2gen.cache.engine import Engine
from h2gen.cache.inputs import Inputs


class Callers:
    """The engines of one cache, one per trajectory that is under way; a thread that calls again keeps its own.

    Args:
        new_engine: makes one.
    """

    def __init__(self, new_engine: Callable[[], Engine]) -> None:
        self._new_engine = new_engine
        self._engines: weakref.WeakSet[Engine] = weakref.WeakSet()  # an engine dies with its thread
        self._thread = threading.local()
        self._lock = threading.Lock()

    @property
    def own(self) -> Engine | None:
        """The engine of this thread's last pass."""
        return cast("Engine | None", getattr(self._thread, "engine", None))

    @property
    def current(self) -> Engine | None:
        """The engine of the pass that runs in this thread, if one does and the cache takes part in it."""
        engine = self.own
        return engine if engine is not None and engine.step is not None else None

    def engine_for(self, inputs: Inputs) -> Engine:
        """The engine for a pass that begins: the one that knows its trajectory, else the thread's own."""
        with self._lock:
            own = self.own
            idle = [] if own is None else [own]
            idle += [engine for engine in self._engines if engine is not own and not engine.busy]
            engine = next((engine for engine in idle if engine.knows(inputs)), own) or self._new_engine()
            engine.busy = True
            self._engines.add(engine)
            self._thread.engine = engine
            return engine

    def forget(self) -> None:
        """Drop everything that is kept, except by the passes of other threads that run now."""
        for engine in [*self._engines]:
            if engine is self.own or not engine.busy:
                engine.forget()
