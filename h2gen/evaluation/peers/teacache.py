"""TeaCache for Flux transformers (arXiv 2411.19108), implemented from its description.

No installable package could be used: xfuser, which has it for FLUX.1, replaces the model's blocks permanently, needs a
distributed process group, and keeps one state for both passes of classifier-free guidance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import BaseState, StateManager
from torch import nn

from h2gen.cache.stages import stages_of
from h2gen.families import Family, family_of
from h2gen.families.given import argument_names, named

_HOOK = "h2gen_teacache"

Decide = Callable[["Trajectory", torch.Tensor], None]


def rescaled(coefficients: Sequence[float], change: float) -> float:
    """The polynomial, highest power first, evaluated at a relative change."""
    total = 0.0
    for coefficient in coefficients:
        total = total * change + coefficient
    return total


@dataclass
class Trajectory(BaseState):  # type: ignore[misc]
    """State of one pass (``cond`` or ``uncond``) of one image.

    ``modulated`` is the first block's normed and modulated input at the previous step, ``(B, N_img, D)``, ``residual``
    what all blocks together added to the image tokens when they last ran, ``spent`` the sum of changes since then.
    """

    step: int = 0
    spent: float = 0.0
    modulated: torch.Tensor | None = None
    residual: torch.Tensor | None = None
    skips: bool = False
    entered: torch.Tensor | None = None

    def reset(self) -> None:
        self.__dict__.update(vars(Trajectory()))

    def decide(self, modulated: torch.Tensor, threshold: float, steps: int, coefficients: Sequence[float]) -> None:
        """Skip this step if the rescaled changes since the last computed step add up to less than the threshold.

        The first and the last step are always computed.
        """
        self.skips = False
        known, self.modulated = self.modulated, modulated
        if known is not None and self.residual is not None and 0 < self.step < steps - 1:
            change = ((modulated - known).abs().mean() / known.abs().mean()).item()
            self.spent += rescaled(coefficients, change)
            self.skips = self.spent < threshold
        if not self.skips:
            self.spent = 0.0
        self.step += 1


class _Block(ModelHook):  # type: ignore[misc]
    """On every block: the first decides; on a skip all blocks are skipped, otherwise the last one's output is kept."""

    _is_stateful = True

    def __init__(
        self, family: Family, stage: str, states: StateManager, first: bool, last: bool, decide: Decide
    ) -> None:
        super().__init__()
        self.family, self.stage = family, stage
        self.states, self.first, self.last, self.decide = states, first, last, decide
        self.names: Sequence[str] = []

    def initialize_hook(self, block: nn.Module) -> nn.Module:
        self.names = argument_names(type(block).forward)
        return block

    def new_forward(self, block: nn.Module, *args: Any, **kwargs: Any) -> Any:
        streams = self.family.block_streams(self.stage, args, kwargs)
        state: Trajectory = self.states.get_state()
        if self.first:
            given = named(self.names, args, kwargs)
            self.decide(state, self.family.modulated_input(block, given))
            state.entered = streams[-1]
        if state.skips:
            if self.first:
                assert state.residual is not None
                streams = (*streams[:-1], streams[-1] + state.residual)
            return self.family.block_output(self.stage, streams)
        output = self.fn_ref.original_forward(*args, **kwargs)
        if self.last:
            # Where text and image tokens are in one stream, the image's come last.
            image = self.family.output_streams(self.stage, output)[-1]
            assert state.entered is not None
            state.residual = image[:, -state.entered.shape[1] :] - state.entered
            state.entered = None
        return output

    def reset_state(self, module: nn.Module) -> nn.Module:
        self.states.reset()
        return module


@contextmanager
def teacache(
    transformer: Any, threshold: float, *, steps: int, coefficients: Sequence[float] | None = None
) -> Iterator[None]:
    """Apply TeaCache to a transformer within a ``with`` block; each pass needs a cache context.

    Args:
        transformer: of any of the families.
        threshold: sum of rescaled changes at which a step is computed.
        steps: denoising steps of an image.
        coefficients: of the rescaling polynomial, highest power first; the model's own if omitted.
    """
    family = family_of(transformer)
    polynomial = family.teacache_polynomial(transformer) if coefficients is None else coefficients
    states = StateManager(Trajectory)
    blocks = [(stage.name, block) for stage in stages_of(transformer) for block in stage.blocks]

    def decide(state: Trajectory, modulated: torch.Tensor) -> None:
        state.decide(modulated, threshold, steps, polynomial)

    hooked = []
    try:
        for index, (stage, block) in enumerate(blocks):
            hook = _Block(family, stage, states, index == 0, index == len(blocks) - 1, decide)
            hooked.append(HookRegistry.check_if_exists_or_initialize(block))
            hooked[-1].register_hook(hook, _HOOK)
        HookRegistry.check_if_exists_or_initialize(transformer).invalidate_child_registries_cache()
        yield
    finally:
        for registry in hooked:
            registry.remove_hook(_HOOK, recurse=False)
