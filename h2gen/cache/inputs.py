"""What a transformer's forward pass was called with, as far as the cache cares."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.hooks.hooks import BaseState, StateManager

from h2gen.cache.state import Ids


class ContextName(StateManager):  # type: ignore[misc]
    """Hears the name that a pipeline gives to its next forward pass, where it gives one (``cache_context``)."""

    def __init__(self) -> None:
        super().__init__(BaseState)
        self.name: str | None = None

    def set_context(self, context: Any) -> None:
        self.name = getattr(context, "name", context)


_OF_ALL = ("controlnet_block_samples", "controlnet_single_block_samples", "kv_cache_mode")


class Inputs:
    """A forward pass's arguments. Keeps neither embeddings nor ids alive."""

    def __init__(self, given: dict[str, Any]) -> None:
        hidden, text = given["hidden_states"], given["encoder_hidden_states"]
        ids = text, given.get("img_ids"), given.get("txt_ids")
        self._ids = [None if tensor is None else weakref.ref(tensor) for tensor in ids]
        self.pictures: int = hidden.shape[0]
        #: Whether blocks can run for some pictures of a batch: none of their arguments has rows that we do not know.
        self.separable = (
            text.shape[0] == self.pictures > 1
            and {*(given.get("joint_attention_kwargs") or ())} <= {"scale"}
            and all(given.get(name) is None for name in _OF_ALL)
        )
        #: What must not change while residuals are kept.
        self.signature = hidden.shape, text.shape, hidden.dtype, hidden.device
        self.text_tokens: int = text.shape[1]
        self.device: torch.device = hidden.device
        self.block_samples: Sequence[torch.Tensor] | None = given.get("controlnet_block_samples")
        self.single_block_samples: Sequence[torch.Tensor] | None = given.get("controlnet_single_block_samples")
        self.blocks_repeat = bool(given.get("controlnet_blocks_repeat"))
        # On CUDA a copy is queued and read later: reading it now would make the host wait for the device.
        first = given["timestep"].detach().flatten()[0]
        queued = first.device.type == "cuda"
        first = first.to("cpu", non_blocking=queued)
        self.timestep: float | torch.Tensor = first if queued else as_timestep(first)

    def read_timestep(self) -> float:
        """The timestep, 0 to 1000; waits for the device."""
        if not isinstance(self.timestep, float):
            torch.accelerator.synchronize(self.device)
            self.timestep = as_timestep(self.timestep)
        return self.timestep

    @property
    def ids(self) -> Ids:
        return Ids(*(None if ref is None else ref() for ref in self._ids))


def as_timestep(sigma: torch.Tensor) -> float:
    """The timestep, 0 to 1000, of what the model is given, 0 to 1."""
    return float(sigma.float() * 1000)
