"""The part of a forward pass's arguments that the cache needs."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from h2gen.cache.identity import Identity
from h2gen.cache.stages import Stage
from h2gen.families import Family


class Inputs:
    """A forward pass's arguments. Keeps neither embeddings nor ids nor latents alive.

    Args:
        family: of the transformer.
        arguments: of its forward pass, by name.
    """

    def __init__(self, family: Family, arguments: Mapping[str, Any]) -> None:
        latents, text, timestep, image_ids, text_ids = family.pass_inputs(arguments)
        self._identity = [None if each is None else weakref.ref(each) for each in (text, image_ids, text_ids, latents)]
        self.pictures: int = latents.shape[0]
        self._family = family
        self._controlnet = {name: value for name, value in arguments.items() if name.startswith("controlnet_")}
        #: Whether blocks can run for only some pictures of the batch.
        self.separable = text.shape[0] == self.pictures > 1 and family.can_split(arguments)
        #: What must not change while residuals are kept.
        self.signature = latents.shape, text.shape, latents.dtype, latents.device
        self.text_tokens: int = text.shape[1]
        self.image_tokens: int = latents.shape[1]
        self.device: torch.device = latents.device
        # On CUDA a copy is queued and read later: reading it now would make the host wait for the device.
        first = timestep.detach().flatten()[0]
        queued = first.device.type == "cuda"
        first = first.to("cpu", non_blocking=queued)
        self.timestep: float | torch.Tensor = first if queued else as_timestep(first)

    def added(self, stage: Stage) -> Sequence[torch.Tensor]:
        """What the model adds between a stage's blocks. A ControlNet that has not run yet runs now."""
        return self._family.added_between(stage.name, len(stage.blocks), self._controlnet)

    def read_timestep(self) -> float:
        """The timestep, 0 to 1000; waits for the device."""
        if not isinstance(self.timestep, float):
            torch.accelerator.synchronize(self.device)
            self.timestep = as_timestep(self.timestep)
        return self.timestep

    @property
    def identity(self) -> Identity:
        return Identity(*(None if ref is None else ref() for ref in self._identity))


def as_timestep(sigma: torch.Tensor) -> float:
    """The timestep, 0 to 1000, of what the model is given, 0 to 1."""
    return float(sigma.float() * 1000)
