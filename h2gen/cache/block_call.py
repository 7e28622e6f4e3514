"""Wraps a block during a forward pass: calls it, or skips it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from threading import get_ident
from typing import Any, NamedTuple, TypeVar, cast

import torch

from h2gen.cache.batch import Rows, Streams, rows_of
from h2gen.cache.callers import Callers
from h2gen.cache.engine import Engine
from h2gen.cache.probe import Probe
from h2gen.cache.stages import Stage
from h2gen.families.given import argument_names

_NOTHING = object()
_Function = TypeVar("_Function", bound=Callable[..., Any])


def outside_graphs(function: _Function) -> _Function:
    """Keep a function, and all that it calls, out of what torch.compile traces."""
    disable: Any = torch.compiler.disable
    return cast(_Function, disable(function))


def between_graphs(function: _Function) -> _Function:
    """The same, but what it calls may be compiled. With ``fullgraph`` torch fails, since 2.8 with our advice."""
    disable: Any = torch.compiler.disable
    kept = disable(function, recursive=False)
    kept._torchdynamo_disable_msg = (
        "with H2-Cache on, compile its blocks by compile_repeated_blocks(), or the transformer without fullgraph"
    )
    return cast(_Function, kept)


class _Call(NamedTuple):
    """A call of a block: arguments, the streams before a stage's first block, and the pictures; or the output."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    whole: Streams
    rows: Rows | None
    output: Any = None
    skipped: bool = False


def itself(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function, for copies in which it replaces what wraps it."""
    return function


class BlockCall:
    """Wraps a block of a stage: the first is a probe, the others are skipped on a hit, the last ends a miss.

    It wraps the block with everything that is on it, including its compiled code. In a copy of the block there is only
    what it wraps.
    """

    def __init__(self, callers: Callers, stage: Stage, index: int) -> None:
        self._stage, self._block = stage, stage.blocks[index]
        self._is_first, self._is_last = index == 0, index == len(stage.blocks) - 1
        own, self._on = self._block.__dict__, True
        self._slot = "forward" if own.get("_compiled_call_impl") is None else "_compiled_call_impl"
        self._found, self._inner = own.get(self._slot, _NOTHING), getattr(self._block, self._slot)
        self._covered = "forward" in own  # by others, who may skip it
        own[self._slot] = self
        self._name, self._of_thread = stage.name, callers.of_thread
        self._between = not (self._is_first or self._is_last)

    def __reduce__(self) -> Any:
        return itself, (self._inner,)

    @property
    def replaced(self) -> Any:
        """What was in the place of the block's own ``forward`` before; None if nothing."""
        return None if self._found is _NOTHING else self._found

    def take_off(self) -> None:
        """Unwrap the block, for good. If hooks were added on top, they still call this one, which then does nothing."""
        own, self._on = self._block.__dict__, False
        if own.get(self._slot) is self:  # otherwise somebody else's hook was removed during the pass, and this with it
            if self._found is _NOTHING:
                del own[self._slot]
            else:
                own[self._slot] = self._found

    @between_graphs
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # Calls no function for most blocks of a full step: that takes time, and torch.compile would look into it.
        engine = self._of_thread.engine if self._on else None
        step = None if engine is None or engine.thread != get_ident() else engine.step
        if engine is None or step is None:
            return self._inner(*args, **kwargs)
        if self._name in (step.through if self._between else step.whole) and not self._covered:
            output = self._inner(*args, **kwargs)
            step.passed[self._name] += 1
            return output
        call = self._before(engine, args, kwargs)
        return call.output if call.skipped else self._after(engine, call, self._inner(*call.args, **call.kwargs))

    @outside_graphs
    def _before(self, engine: Engine, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call:
        """What to call the block with, or what it returns if it is skipped."""
        family = engine.family
        stage, first = self._stage, self._is_first
        whole, rows = family.block_streams(stage.name, args, kwargs), engine.rows(stage, first=first)
        if engine.skips(stage, first=first):
            streams = engine.instead(stage, whole, first=first)
            return _Call((), {}, (), rows, output=family.block_output(stage.name, streams), skipped=True)
        if first and not stage.own:
            engine.before_first(stage)
        if rows is not None:
            block: Any = getattr(self._block, "_orig_mod", self._block)  # what torch.compile wraps
            names = [*argument_names(type(block).forward), *[""] * len(args)]  # it may take more than it names
            args = tuple(self._narrowed(zip(names, args, strict=False), engine, rows))
            kwargs = dict(zip(kwargs, self._narrowed(kwargs.items(), engine, rows), strict=True))
        return _Call(args, kwargs, whole if first else (), rows)

    @outside_graphs
    def _after(self, engine: Engine, call: _Call, output: Any) -> Any:
        """The block's output, or what the cache makes of it after a stage's first and last block."""
        family, name = engine.family, self._stage.name
        before, streams = family.block_streams(name, call.args, call.kwargs), family.output_streams(name, output)
        if call.rows is None and {*map(id, streams)} <= {*map(id, before)}:
            return output  # somebody else's hook skipped the block (diffusers' may even swap text and image)
        if engine.step is not None:
            engine.step.count(name, call.rows)
        if not (self._is_first or self._is_last):
            return output
        if self._is_first:
            family.check_streams(name, before, streams)
            streams = engine.after_first(self._stage, Probe(call.whole, before, streams))
        if self._is_last and not engine.skips(self._stage):
            streams = engine.after_last(streams)
        return family.block_output(name, streams)

    def _narrowed(self, given: Iterable[tuple[str, Any]], engine: Engine, rows: Rows) -> list[Any]:
        """A block's arguments for some pictures of the batch; after the first block its streams have only these."""
        pictures, per_picture = engine.pictures, engine.family.per_picture

        def has_rows(name: str, value: Any) -> bool:
            return name in per_picture and value is not None and len(value) == pictures

        return [rows_of(value, rows) if has_rows(name, value) else value for name, value in given]
