"""The glue to diffusers and torch: hooks on a transformer and on its blocks, put on and taken off.

The blocks get diffusers' own ModelHooks, so that names, state dicts, LoRA, offloading and quantized layers stay as they
are. The transformer itself gets torch's forward hooks instead: model offloading swaps the ``forward`` of whole models
between two calls of a pipeline, and a ModelHook would be lost with it.
"""

from __future__ import annotations

import inspect
from typing import Any

from diffusers.hooks import HookRegistry, ModelHook
from torch import nn

from h2gen.cache.batch import Rows, rows_of
from h2gen.cache.engine import Engine
from h2gen.cache.probe import Probe
from h2gen.cache.stages import Stage

_HOOK = "h2gen_cache"


class BlockHook(ModelHook):  # type: ignore[misc]
    """On every block of a stage: the first is a probe, the others are skipped on a hit, the last ends a miss."""

    _is_stateful = True  # so that pipelines which set a cache context set it here

    def __init__(self, engine: Engine, stage: Stage, index: int) -> None:
        super().__init__()
        self.engine, self.stage, self.family = engine, stage, engine.family
        self.is_first, self.is_last = index == 0, index == len(stage.blocks) - 1
        self.context = engine.tracker.context
        self._names = list(inspect.signature(type(stage.blocks[index]).forward).parameters)[1:]

    def new_forward(self, _module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        engine, stage, family = self.engine, self.stage, self.family
        whole, rows = family.block_streams(stage.name, args, kwargs), engine.rows(first=self.is_first)
        if engine.skips(stage, first=self.is_first):
            return family.block_output(stage.name, whole)
        if rows is not None:
            args, kwargs = (), self._narrowed({**dict(zip(self._names, args, strict=False)), **kwargs}, rows)
        output = self.fn_ref.original_forward(*args, **kwargs)
        if not (self.is_first or self.is_last):
            return output
        streams = family.output_streams(stage.name, output)
        if self.is_first:
            streams = engine.after_first(stage, Probe(whole, family.block_streams(stage.name, args, kwargs), streams))
        if self.is_last and not engine.skips(stage):
            streams = engine.after_last(streams)
        return family.block_output(stage.name, streams)

    def _narrowed(self, given: dict[str, Any], rows: Rows) -> dict[str, Any]:
        """A block's arguments for some pictures of the batch. After the first block the streams already are."""
        pictures = self.engine.pictures

        def has_rows(name: str, value: Any) -> bool:
            return name in self.family.per_picture and value is not None and len(value) == pictures

        return {name: rows_of(value, rows) if has_rows(name, value) else value for name, value in given.items()}

    def reset_state(self, module: nn.Module) -> nn.Module:
        self.engine.forget()
        return module


class Attachment:
    """One cache on one transformer, which can be taken off again."""

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
                _registry(block).register_hook(BlockHook(engine, stage, index), _HOOK)
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
        """Take our hook off, even under accelerate's, which wraps ``forward`` without telling the registry."""
        wrapped = block.__dict__.get("_old_forward") is self._installed[block]
        outer: Any = block.forward
        _registry(block).remove_hook(_HOOK, recurse=False)
        if wrapped:
            inner: Any = block.forward
            block.__dict__.update(_old_forward=inner, forward=outer)


def _refresh(transformer: nn.Module) -> None:
    """Make diffusers look for hooks again: it remembers which blocks had any."""
    if hasattr(transformer, "_diffusers_hook"):
        _registry(transformer).invalidate_child_registries_cache()


def _registry(module: nn.Module) -> Any:
    return HookRegistry.check_if_exists_or_initialize(module)
