"""H2-Cache on a diffusers transformer: hooks on its blocks and on itself; apply and remove.

The blocks carry diffusers' own ModelHooks, so that names, state dicts, LoRA, offloading and quantized layers stay as
they are. The transformer itself carries torch's forward hooks instead: model offloading swaps the ``forward`` of whole
models between two calls of a pipeline, and a ModelHook would be lost with it.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from diffusers.hooks import HookRegistry, ModelHook
from diffusers.utils.torch_utils import unwrap_module
from torch import nn

from h2gen.cache.config import CacheConfig
from h2gen.cache.engine import Engine
from h2gen.cache.rows import Rows, Streams, rows_of
from h2gen.cache.schedule import schedule_of
from h2gen.cache.stages import Stage
from h2gen.cache.trace import StepRecord, Trace
from h2gen.errors import CacheError

_HOOK = "h2gen_cache"


class _BlockHook(ModelHook):  # type: ignore[misc]
    """On every block of a stage: the first is probed, the others are passed by on a hit, the last is kept on a miss."""

    _is_stateful = True  # so that pipelines which set a cache context set it here

    def __init__(self, engine: Engine, stage: Stage, index: int) -> None:
        super().__init__()
        self.engine, self.stage = engine, stage
        self.is_first, self.is_last = index == 0, index == len(stage.blocks) - 1
        self.context = engine.context
        self._names = list(inspect.signature(type(stage.blocks[index]).forward).parameters)[1:]

    def new_forward(self, _module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if self.engine.skips(self.stage, first=self.is_first):
            return _like(_inputs(args, kwargs))
        whole, rows = _inputs(args, kwargs), self.engine.rows(first=self.is_first)
        if rows is not None:
            args, kwargs = (), self._narrowed({**dict(zip(self._names, args, strict=False)), **kwargs}, rows)
        output = self.fn_ref.original_forward(*args, **kwargs)
        streams = output if isinstance(output, tuple) else (output,)
        changed = None
        if self.is_first:
            changed = self.engine.after_first(self.stage, whole, _inputs(args, kwargs), streams)
        if self.is_last and not self.engine.skips(self.stage):
            changed = self.engine.after_last(self.stage, streams if changed is None else changed) or changed
        return output if changed is None else _like(changed)

    def _narrowed(self, given: dict[str, Any], rows: Rows) -> dict[str, Any]:
        """A block's arguments for some pictures of the batch. What has rows is the streams, which after the first block
        are narrowed already, and the modulation; positions are shared."""
        pictures = self.engine.pictures
        return {
            name: rows_of(value, rows) if _has_rows(name) and value is not None and len(value) == pictures else value
            for name, value in given.items()
        }

    def reset_state(self, module: nn.Module) -> nn.Module:
        self.engine.forget()
        return module


def _has_rows(name: str) -> bool:
    return name in ("hidden_states", "encoder_hidden_states") or name.startswith("temb")


def _inputs(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Streams:
    image = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
    text = kwargs["encoder_hidden_states"] if "encoder_hidden_states" in kwargs else args[1]
    return (image,) if text is None else (text, image)


def _like(streams: Streams) -> Any:
    """The streams as a block returns them."""
    return streams if len(streams) > 1 else streams[0]


class _Attachment:
    """One cache on one transformer, and how to take it off again."""

    def __init__(self, transformer: nn.Module, engine: Engine) -> None:
        self._registries: list[tuple[nn.Module, bool, bool]] = []
        self._installed: dict[nn.Module, Any] = {}
        self._handles = [
            transformer.register_forward_pre_hook(engine.begin, with_kwargs=True),
            transformer.register_forward_hook(engine.end),
        ]
        for stage in engine.hooked:
            for index, block in enumerate(stage.blocks):
                self._registries.append((block, hasattr(block, "_diffusers_hook"), "forward" in block.__dict__))
                _registry(block).register_hook(_BlockHook(engine, stage, index), _HOOK)
                self._installed[block] = block.forward
        _refresh(transformer)

    def detach(self, transformer: nn.Module) -> None:
        for handle in self._handles:
            handle.remove()
        for block, had_registry, had_forward in self._registries:
            self._unhook(block)
            if not _registry(block).hooks:
                if not had_forward and not hasattr(block, "_hf_hook"):
                    block.__dict__.pop("forward", None)
                if not had_registry:
                    del block._diffusers_hook
        _refresh(transformer)

    def _unhook(self, block: nn.Module) -> None:
        """Take our hook off, also from beneath accelerate's, which wraps ``forward`` without telling the registry."""
        wrapped = block.__dict__.get("_old_forward") is self._installed[block]
        outer: Any = block.forward
        _registry(block).remove_hook(_HOOK, recurse=False)
        if wrapped:
            inner: Any = block.forward
            block.__dict__.update(_old_forward=inner, forward=outer)


def _refresh(transformer: nn.Module) -> None:
    """Have diffusers look for hooks anew: it remembers which blocks had any."""
    if hasattr(transformer, "_diffusers_hook"):
        _registry(transformer).invalidate_child_registries_cache()


def _registry(module: nn.Module) -> Any:
    return HookRegistry.check_if_exists_or_initialize(module)


_attached: weakref.WeakKeyDictionary[nn.Module, _Attachment] = weakref.WeakKeyDictionary()


def _transformer_of(target: Any) -> nn.Module:
    module = getattr(target, "transformer", target)
    if not isinstance(module, nn.Module):
        raise CacheError(
            f"H2-Cache goes on a transformer or on a pipeline that has one, not a {type(target).__name__}."
        )
    unwrapped: nn.Module = unwrap_module(module)
    return unwrapped


def apply(
    target: Any, config: CacheConfig | None = None, *, on_step: Callable[[StepRecord], None] | None = None
) -> Trace:
    """Put H2-Cache on a transformer until ``remove``. A cache that is on it already is replaced.

    Args:
        target: a ``FluxTransformer2DModel`` or ``Flux2Transformer2DModel``, or a pipeline that has one. Given the
            pipeline, the cache knows its schedule: exact timesteps in the trace, ``final_steps`` and ``tolerance``.
        config: thresholds and guards; the paper's where left out.
        on_step: is called with each step's record, in order, as soon as the device has finished it.

    Returns:
        The trace, which grows with every step that runs from now on.

    Raises:
        CacheError: the model cannot be cached, diffusers' own cache is on, or ``final_steps`` or ``tolerance`` is given
            without a pipeline.
    """
    config = CacheConfig() if config is None else config
    transformer = _transformer_of(target)
    schedule = None
    if transformer is not unwrap_module(target) and hasattr(target, "scheduler"):
        schedule = schedule_of(target)
    elif config.final_steps or config.tolerance:
        name = "final_steps" if config.final_steps else "tolerance"
        raise CacheError(f"{name} needs to know the steps beforehand: apply the cache to the pipeline itself.")
    trace = Trace(on_step)
    engine = Engine(transformer, config, schedule, trace)
    if getattr(transformer, "is_cache_enabled", False):
        name = type(transformer.__dict__["_cache_config"]).__name__
        raise CacheError(f"diffusers' own cache ({name}) is on this transformer; call its disable_cache() first.")
    remove(target)
    _attached[transformer] = _Attachment(transformer, engine)
    return trace


def remove(target: Any) -> None:
    """Take H2-Cache off a transformer, or a pipeline's: it is as it was before. Does nothing where there is none."""
    transformer = _transformer_of(target)
    attachment = _attached.pop(transformer, None)
    if attachment is not None:
        attachment.detach(transformer)


@contextmanager
def h2_cache(
    target: Any,
    config: CacheConfig | None = None,
    *,
    on_step: Callable[[StepRecord], None] | None = None,
    **settings: Any,
) -> Iterator[Trace]:
    """H2-Cache on a transformer for the length of a ``with`` block, on any diffusers pipeline.

    ``settings`` are fields of ``CacheConfig`` and go over ``config``; a tolerance alone leaves no threshold. The rest
    is as in ``apply``.

    >>> with h2gen.h2_cache(pipe.transformer, tau1=0.08, tau2=0.2) as trace:  # doctest: +SKIP
    ...     image = pipe("a cat").images[0]
    >>> trace.summary.estimated_speedup  # doctest: +SKIP
    """
    if config is None and settings.get("tolerance") and not {"tau1", "tau2"} & settings.keys():
        config = CacheConfig(0, 0)
    trace = apply(target, replace(config or CacheConfig(), **settings), on_step=on_step)
    try:
        yield trace
        trace.flush(wait=True)
    finally:
        remove(target)
