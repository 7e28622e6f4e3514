"""Offload only text encoders: they leave the device once a prompt is encoded, and the transformer stays from then on.

Unlike diffusers' model offloading, nothing leaves after a picture: further pictures of a prompt move no weights.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from accelerate.utils import send_to_device
from torch import nn


class _Placed(ModelHook):  # type: ignore[misc]
    """On a part that stays on the device. diffusers reads from it where a pipeline computes."""

    def __init__(self, device: torch.device) -> None:
        self.execution_device = device


class _Turns:
    """Which of several parts is on the device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._current: nn.Module | None = None

    def take(self, part: nn.Module) -> None:
        """Bring a part to the device, after the one that was there has left."""
        if part is self._current:
            return
        leaving, self._current = self._current, None  # if memory runs out meanwhile, none is wholly there
        if leaving is not None:
            leaving.to("cpu")
        part.to(self.device)
        self._current = part


class _TakesTurns(ModelHook):  # type: ignore[misc]
    """On a part that is on the device only until another one takes its turn."""

    def __init__(self, turns: _Turns) -> None:
        self.execution_device, self._turns = turns.device, turns

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        self._turns.take(module)
        return send_to_device(args, self.execution_device), send_to_device(kwargs, self.execution_device)


def offload_text(pipe: Any, device: torch.device) -> None:
    """Let text encoders and the transformer of a pipeline take turns on the device; other parts stay there.

    The hooks are not accelerate's own, which diffusers replaces by those of model offloading when a LoRA is loaded.

    Args:
        pipe: in main memory.
        device: to compute on.
    """
    turns = _Turns(device)
    for name, part in pipe.components.items():
        if isinstance(part, nn.Module):
            if name == "transformer" or "encoder" in name:
                add_hook_to_module(part, _TakesTurns(turns))
            else:
                keep(part, device)


def keep(part: nn.Module, device: torch.device) -> None:
    """Put a part on the device for as long as its pipeline is used."""
    add_hook_to_module(part.to(device), _Placed(device))
