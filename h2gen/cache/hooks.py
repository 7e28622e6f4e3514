"""The glue to diffusers and torch: hooks on a transformer while the cache is on.

Between two forward passes nothing is on the blocks: each pass wraps each block in a ``BlockCall`` and unwraps it at
its end. Whatever others do to a model in between (load a LoRA, offload, compile, add or remove hooks, replace blocks)
can therefore neither drop the cache nor be undone by it. Names, state dicts and quantized layers stay as they are, and
a block's compiled graph is the same as without the cache.

The transformer's own ``forward`` is wrapped for as long as the cache is on: torch has looked it up by the time that a
pass begins. A step that is skipped entirely does not call it. Where something else has taken its place, the blocks are
skipped one by one, and it is wrapped again for the next pass.

After a pass that was interrupted (``KeyboardInterrupt``, unlike an error) torch calls no hook. Its blocks stay wrapped
until the next pass begins or the cache is taken off.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from h2gen.cache.agree import ranks_of
from h2gen.cache.block_call import BlockCall, outside_graphs
from h2gen.cache.callers import Callers
from h2gen.cache.controlnet import computed, postponed, without_samples
from h2gen.cache.engine import Engine, Shared
from h2gen.cache.inputs import Inputs
from h2gen.cache.others import refuse_other_caches
from h2gen.cache.overridden import Forward, Overridden
from h2gen.cache.stages import own_stages_of, stages_of
from h2gen.errors import CacheError
from h2gen.families.given import argument_names, named


class Attachment:
    """One cache on one transformer, until it is detached.

    Without arguments it does nothing: a copy of a model (``copy.deepcopy``, pickle) gets one like that.
    """

    def __init__(
        self, transformer: nn.Module | None = None, shared: Shared | None = None, controlnet: Any = None
    ) -> None:
        self._lock = threading.Lock()
        self._inside: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
        self._calls: list[BlockCall] = []
        self._closed = threading.Event()
        if transformer is None or shared is None:
            self._closed.set()
            return
        self._shared, self._callers = shared, Callers(lambda: Engine(shared))
        self._names = argument_names(type(transformer).forward)
        self._begin = transformer.register_forward_pre_hook(self.begin, with_kwargs=True)
        self._end = transformer.register_forward_hook(self.end, always_call=True)
        self._transformer = weakref.ref(transformer)
        self._forward = Forward(transformer, self._callers)
        Overridden(transformer, "cache_context", self._in_context)
        Overridden(transformer, "_reset_stateful_cache", self._reset)
        later = None if controlnet is None else postponed(controlnet)
        self._controlnet = None if later is None else Overridden(controlnet, "forward", later)
        # After ``begin``, and not in it: a compiled ControlNet must run as it was compiled.
        self._compute = None if later is None else transformer.register_forward_pre_hook(computed, with_kwargs=True)

    def __reduce__(self) -> Any:
        return Attachment, ()

    def closed(self) -> bool:
        """Whether it has been detached."""
        return self._closed.is_set()

    @property
    def engine(self) -> Engine | None:
        """The engine of the pass that runs in this thread; None if there is none."""
        return None if self.closed() else self._callers.current

    @outside_graphs
    def begin(self, transformer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Begin a forward pass: wrap the blocks as they are now, whatever was done to the model since the last pass.

        Returns the arguments of a skipped step: without samples of a ControlNet, which then does not run.
        """
        if self.closed():
            return None
        family = self._shared.family
        stages, own = stages_of(transformer, family), own_stages_of(transformer, family)
        given = named(self._names, args, kwargs)
        inputs = Inputs(family, given, own, ranks_of(transformer))
        engine = self._callers.engine_for(inputs)
        engine.begin(stages, inputs, own)
        refuse_other_caches(transformer, everywhere=engine.step is not None and engine.step.index == 0)
        with self._lock:
            if self.closed():  # by another thread in the meantime
                engine.forget()
                return None
            if not self._others_inside():
                self._take_off()
            asked = self._forward.on_top(transformer)
            if not asked:  # others have hooked the transformer since, or taken off a hook; from the next pass on
                self._forward = Forward(transformer, self._callers)
            if not (self._calls or (asked and engine.outputs.known(engine.step))):
                self._calls = [
                    BlockCall(self._callers, stage, index)
                    for stage in (*own, *stages)
                    for index in range(len(stage.blocks))
                ]
            self._inside.add(threading.current_thread())
        return (args, without_samples(kwargs)) if engine.step is not None and engine.step.skipped else None

    @outside_graphs
    def end(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        """End a forward pass; there is no output if it failed."""
        engine = None if self.closed() and not self._inside else self._callers.own
        if engine is None or not engine.busy:
            return output
        with self._lock:
            self._inside.discard(threading.current_thread())
            if not self._others_inside():
                self._take_off()
                if self.closed() and output is not None:  # after an error torch is iterating over the hooks
                    self._end.remove()
        try:
            return engine.end(output)
        finally:
            engine.busy = False
            if self.closed():
                engine.forget()

    def detach(self, transformer: nn.Module, *, replaced: bool = False) -> None:
        """Take the cache off. A pass that another thread has begun keeps it until its end.

        Args:
            transformer: that it was put on, or a shallow copy.
            replaced: whether another cache is to replace it.

        Raises:
            CacheError: another cache is to replace it, and a pass of another thread has not ended.
        """
        with self._lock:
            others = self._others_inside()
            if others and replaced:
                raise CacheError("The transformer is running in another thread; apply the cache between two calls.")
            self._closed.set()
            self._begin.remove()
            for model in (transformer, self._transformer()):
                for method in () if model is None else [*vars(model).values()]:
                    if isinstance(method, Overridden):
                        method.restore(model)
            if self._controlnet is not None and self._compute is not None:
                self._controlnet.restore()
                self._compute.remove()
            if not others:
                self._take_off()
                self._end.remove()  # not while the hooks are being called
        self._callers.forget()

    def _others_inside(self) -> bool:
        """Whether a pass of another thread runs; one that never ended may have ended its thread."""
        return bool(self._inside) and any(
            thread.is_alive() for thread in {*self._inside} - {threading.current_thread()}
        )

    def _take_off(self) -> None:
        for call in self._calls:
            call.take_off()
        self._calls = []

    @contextmanager
    def _in_context(self, original: Callable[..., Any], name: str, **details: Any) -> Iterator[None]:
        """The transformer's ``cache_context``, which also gives the cache the name of the next pass."""
        context = self._shared.context
        with original(name, **details):
            before, context.name = context.name, name
            try:
                yield
            finally:
                context.name = before

    def _reset(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """The transformer's ``_reset_stateful_cache``, which pipelines end with: it ends this thread's trajectory."""
        original(*args, **kwargs)
        if (engine := self._callers.own) is not None:
            engine.forget()
