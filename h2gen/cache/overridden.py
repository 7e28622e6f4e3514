"""Methods of a model that are wrapped while the cache is on."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from torch import nn

from h2gen.cache.block_call import between_graphs, itself, outside_graphs
from h2gen.cache.callers import Callers


class Overridden:
    """A method of a model, wrapped; in a copy of the model it just calls the original one.

    Args:
        transformer: gets it, if it has such a method.
        name: of the method.
        call: is called instead, with the method itself and its arguments.
    """

    def __init__(self, transformer: nn.Module, name: str, call: Callable[..., Any] | None = None) -> None:
        self._transformer, self._name, self._call = weakref.ref(transformer), name, call
        self._found = transformer.__dict__.get(name)
        if hasattr(transformer, name):
            transformer.__dict__[name] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        original = self.original
        return original(*args, **kwargs) if self._call is None else self._call(original, *args, **kwargs)

    def __reduce__(self) -> Any:
        return Overridden, (self._transformer(), self._name)

    @property
    def original(self) -> Callable[..., Any]:
        """The method itself."""
        transformer = self._transformer()
        method: Callable[..., Any] = self._found or getattr(type(transformer), self._name).__get__(transformer)
        return method

    def on_top(self, transformer: nn.Module) -> bool:
        """Whether it is what a caller of the method calls.

        Args:
            transformer: whose method is called, which may be a shallow copy of the one that got it.
        """
        if self._transformer() is None:
            self._transformer = weakref.ref(transformer)
        return transformer.__dict__.get(self._name) is self

    def restore(self, transformer: nn.Module | None = None) -> None:
        """Put the method back, unless somebody else has put something in its place.

        Args:
            transformer: a shallow copy to put it back in, instead of the one that got it.
        """
        model = self._transformer() if transformer is None else transformer
        own = {} if model is None else model.__dict__
        if own.get(self._name) is self:
            del own[self._name]
            own.update({} if self._found is None else {self._name: self._found})


class Forward(Overridden):
    """The transformer's ``forward``, which is not called in a step that is skipped entirely.

    Args:
        transformer: gets it.
        callers: of the cache that is on.
    """

    def __init__(self, transformer: nn.Module, callers: Callers) -> None:
        super().__init__(transformer, "forward")
        self._callers = callers
        with suppress(TypeError, ValueError):  # modular pipelines ask for it
            self.__signature__ = inspect.signature(self.original)

    @between_graphs
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        forward, output = self._forward_or_output()
        return output if forward is None else forward(*args, **kwargs)

    @outside_graphs
    def _forward_or_output(self) -> tuple[Callable[..., Any] | None, Any]:
        """What to call, or what to return instead."""
        engine = self._callers.current
        output = None if engine is None else engine.outputs.forecast(engine.step)
        return (self.original if output is None else None), output

    def __reduce__(self) -> Any:
        return itself, (self.original,)

    def restore(self, transformer: nn.Module | None = None) -> None:
        """Put ``forward`` back. What it wraps may be another ``Forward``, which others had covered for a while."""
        super().restore(transformer)
        if isinstance(self._found, Forward):
            self._found.restore(transformer)
