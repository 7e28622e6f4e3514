"""Skips whole steps of a transformer by a schedule and forecasts what they would have computed.

A forecast replaces either the transformer's output or the features of its last layer. On a skipped step no block runs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import BaseState, StateManager
from torch import nn

from h2gen.cache.stages import own_stages_of, stages_of
from h2gen.evaluation.peers.base import contexts, left_as_found
from h2gen.families import Family, family_of

Target = Literal["output", "features"]
"""What is forecast: the transformer's output ``(B, N_img, C)``, or the input of its output layers ``(B, N_img, D)``."""

_HOOK = "h2gen_skipping"


class Forecaster(ABC):
    """Forecasts one tensor over the steps of one pass of one image. Steps count from 0; the first one is computed."""

    @abstractmethod
    def keep(self, step: int, value: torch.Tensor) -> torch.Tensor:
        """Take what a step computed; returns what the model uses in its place, usually the same tensor."""

    @abstractmethod
    def fill(self, step: int) -> torch.Tensor:
        """What a skipped step uses, in the shape and dtype of what was kept."""


class _Recorder(Forecaster):
    """Keeps everything; for schedules that skip nothing."""

    def __init__(self) -> None:
        self.values: list[torch.Tensor] = []

    def keep(self, step: int, value: torch.Tensor) -> torch.Tensor:
        self.values.append(value.float())
        return value

    def fill(self, step: int) -> torch.Tensor:
        raise NotImplementedError


class _Pass(BaseState):  # type: ignore[misc]
    """State of one pass (``cond`` or ``uncond``) of one image; a new image gets a new one."""

    def __init__(self, new_forecaster: Callable[[], Forecaster]) -> None:
        self.forecaster = new_forecaster()
        self.following = 0
        self.last: Any = None

    def reset(self) -> None:
        pass


class _Root(ModelHook):  # type: ignore[misc]
    """On the transformer: counts steps, and decides whether the current one is computed."""

    _is_stateful = True

    def __init__(self, family: Family, states: StateManager, skipped: Collection[int], target: Target) -> None:
        super().__init__()
        self.family, self.states, self.skipped, self.target = family, states, skipped, target
        self.forecaster: Forecaster | None = None
        self.step = 0
        self.skips = False

    def new_forward(self, _transformer: nn.Module, *args: Any, **kwargs: Any) -> Any:
        state: _Pass = self.states.get_state()
        self.step, self.forecaster = state.following, state.forecaster
        self.skips = self.step in self.skipped
        state.following += 1
        if self.target == "features":
            return self.fn_ref.original_forward(*args, **kwargs)
        if self.skips:
            return self.family.with_velocity(state.last, state.forecaster.fill(self.step))
        output = self.fn_ref.original_forward(*args, **kwargs)
        computed = self.family.velocity(output)
        used = state.forecaster.keep(self.step, computed)
        state.last = output if used is computed else self.family.with_velocity(output, used)
        return state.last

    def entering_output_layers(self, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Replaces the features by their forecast, or keeps them."""
        assert self.forecaster is not None
        features = self.forecaster.fill(self.step) if self.skips else self.forecaster.keep(self.step, args[0])
        return (features, *args[1:])

    def reset_state(self, module: nn.Module) -> nn.Module:
        self.states.reset()
        return module


class _Block(ModelHook):  # type: ignore[misc]
    """On every block: passes its input through on a skipped step."""

    def __init__(self, root: _Root, stage: str) -> None:
        super().__init__()
        self.root, self.stage = root, stage

    def new_forward(self, _block: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not self.root.skips:
            return self.fn_ref.original_forward(*args, **kwargs)
        family = self.root.family
        return family.block_output(self.stage, family.block_streams(self.stage, args, kwargs))


@contextmanager
def skipping(
    pipe: Any, skipped: Collection[int], new_forecaster: Callable[[], Forecaster], target: Target
) -> Iterator[None]:
    """Skip steps of a pipeline's transformer within a ``with`` block.

    Args:
        pipe: a diffusers pipeline of any of the families.
        skipped: steps that are forecast, counting from 0.
        new_forecaster: makes the forecaster of one pass of one image.
        target: what is forecast.
    """
    transformer = pipe.transformer
    family = family_of(transformer)
    root = _Root(family, StateManager(_Pass, (new_forecaster,)), skipped, target)
    hooked = [(transformer, root)]
    if target == "features":
        stages = (*own_stages_of(transformer), *stages_of(transformer))
        hooked += [(block, _Block(root, stage.name)) for stage in stages for block in stage.blocks]
    with ExitStack() as stack:
        stack.enter_context(contexts(pipe))
        for module, hook in hooked:
            registry = HookRegistry.check_if_exists_or_initialize(module)
            registry.register_hook(hook, _HOOK)
            stack.callback(registry.remove_hook, _HOOK, recurse=False)
        HookRegistry.check_if_exists_or_initialize(transformer).invalidate_child_registries_cache()
        if target == "features":
            handle = family.head(transformer)[0].register_forward_pre_hook(root.entering_output_layers)
            stack.callback(handle.remove)
        yield


def recorded(pipe: Any, target: Target, run: Callable[[], Any]) -> list[list[torch.Tensor]]:
    """The tensors that would be forecast, as a run computes them: for each pass, one float32 tensor per step."""
    passes: list[_Recorder] = []

    def begin() -> Forecaster:
        passes.append(_Recorder())
        return passes[-1]

    with left_as_found(pipe.transformer), skipping(pipe, (), begin, target):
        run()
    return [each.values for each in passes]


@contextmanager
def solver_inputs(pipe: Any) -> Iterator[list[torch.Tensor]]:
    """Within a ``with`` block, collect the velocity that the solver receives at each step, guidance included."""
    scheduler, found = pipe.scheduler, []
    step = scheduler.step

    def noting(model_output: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        found.append(model_output.float())
        return step(model_output, *args, **kwargs)

    scheduler.step = noting
    try:
        yield found
    finally:
        del scheduler.step
