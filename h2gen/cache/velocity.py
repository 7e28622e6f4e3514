"""A transformer's output, the velocity: taken out of what its forward pass returns, and put into it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch


def velocity_in(output: Any) -> tuple[torch.Tensor]:
    """The velocity, ``(B, N_img, C)``, of a forward pass's output, which is a tuple or an object with ``sample``."""
    return (output[0],)


def with_velocity(output: Any, velocity: tuple[torch.Tensor, ...]) -> Any:
    """An output of the same kind with another velocity."""
    if isinstance(output, tuple):
        return (*velocity, *output[1:])
    return replace(output, sample=velocity[0])
