"""TeaCache on a Flux transformer (arXiv 2411.19108), written anew from its description.

No installable package can be compared with: the one that has it for FLUX.1, xfuser, replaces the model's blocks for
good, needs a distributed process group, and keeps one state for both passes of classifier-free guidance.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import BaseState, StateManager
from torch import nn

from h2gen.cache.stages import stages_of

FLUX1_DEV = (498.651651, -283.781631, 55.8554382, -3.82021401, 0.264230861)
"""The published polynomial of FLUX.1 [dev], highest power first: from the input's change to the output's."""
IDENTITY = (1.0, 0.0)

_HOOK = "h2gen_teacache"

Decide = Callable[["Trajectory", torch.Tensor], None]


def coefficients_of(transformer: Any) -> tuple[float, ...]:
    """The polynomial of a model: published for FLUX.1 [dev] (and what is built like it), the identity for others."""
    config = transformer.config
    blocks = config.num_layers, config.num_single_layers
    dev = blocks == (19, 38) and config.guidance_embeds and type(transformer).__name__ == "FluxTransformer2DModel"
    return FLUX1_DEV if dev else IDENTITY


def rescaled(coefficients: Sequence[float], change: float) -> float:
    """The polynomial, highest power first, at a relative change."""
    total = 0.0
    for coefficient in coefficients:
        total = total * change + coefficient
    return total


@dataclass
class Trajectory(BaseState):  # type: ignore[misc]
    """What is kept of one pass (``cond`` or ``uncond``) of one picture.

    ``modulated`` is the first block's normed and modulated input at the step before, ``(B, N_img, D)``, ``residual``
    what all blocks together added to the image tokens when they last ran, ``spent`` the changes since then.
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
        """Whether this step is skipped: the rescaled changes since the last computed one add up to below the threshold.

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
    """On every block: the first decides, all are passed by on a skip, the last one's output is kept otherwise."""

    _is_stateful = True

    def __init__(self, states: StateManager, first: bool, last: bool, decide: Decide) -> None:
        super().__init__()
        self.states, self.first, self.last, self.decide = states, first, last, decide
        self.names: list[str] = []

    def initialize_hook(self, block: nn.Module) -> nn.Module:
        self.names = list(inspect.signature(type(block).forward).parameters)[1:]
        return block

    def new_forward(self, block: nn.Module, *args: Any, **kwargs: Any) -> Any:
        given = {**dict(zip(self.names, args, strict=False)), **kwargs}
        image, text = given["hidden_states"], given["encoder_hidden_states"]
        state: Trajectory = self.states.get_state()
        if self.first:
            self.decide(state, _modulated(block, given))
            state.entered = image
        if state.skips:
            if self.first:
                assert state.residual is not None
                image = image + state.residual
            return image if text is None else (text, image)
        output = self.fn_ref.original_forward(*args, **kwargs)
        if self.last:
            # A single-stream block of FLUX.2 returns text and image tokens in one.
            image = output[1] if isinstance(output, tuple) else output
            assert state.entered is not None
            state.residual = image[:, -state.entered.shape[1] :] - state.entered
            state.entered = None
        return output

    def reset_state(self, module: nn.Module) -> nn.Module:
        self.states.reset()
        return module


def _modulated(block: Any, given: dict[str, Any]) -> torch.Tensor:
    """The first block's image input as its attention sees it: normed, scaled and shifted by the timestep."""
    image = given["hidden_states"]
    if "temb" in given:
        modulated: torch.Tensor = block.norm1(image, emb=given["temb"])[0]
        return modulated
    modulation = given["temb_mod_img"]  # FLUX.2: shift, scale and gate of the attention, and again of the rest
    shift, scale = (modulation if modulation.ndim == 3 else modulation.unsqueeze(1)).chunk(6, dim=-1)[:2]
    modulated = (1 + scale) * block.norm1(image) + shift
    return modulated


@contextmanager
def teacache(
    transformer: Any, threshold: float, *, steps: int, coefficients: Sequence[float] | None = None
) -> Iterator[None]:
    """TeaCache on a transformer for the length of a ``with`` block; each pass needs a cache context.

    Args:
        transformer: a FLUX.1 or FLUX.2 transformer.
        threshold: how far rescaled changes may add up before a step is computed.
        steps: denoising steps of a picture.
        coefficients: of the rescaling polynomial, highest power first; the model's own where left out.
    """
    polynomial = coefficients_of(transformer) if coefficients is None else coefficients
    states = StateManager(Trajectory)
    blocks = [block for stage in stages_of(transformer) for block in stage.blocks]

    def decide(state: Trajectory, modulated: torch.Tensor) -> None:
        state.decide(modulated, threshold, steps, polynomial)

    hooked = []
    try:
        for block in blocks:
            hook = _Block(states, block is blocks[0], block is blocks[-1], decide)
            hooked.append(HookRegistry.check_if_exists_or_initialize(block))
            hooked[-1].register_hook(hook, _HOOK)
        HookRegistry.check_if_exists_or_initialize(transformer).invalidate_child_registries_cache()
        yield
    finally:
        for registry in hooked:
            registry.remove_hook(_HOOK, recurse=False)
