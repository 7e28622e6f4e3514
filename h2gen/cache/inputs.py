"""The part of a forward pass's arguments that the cache needs."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from h2gen.cache.agree import Ranks
from h2gen.cache.exact import Constants
from h2gen.cache.identity import Identity
from h2gen.cache.schedule import callers
from h2gen.cache.stages import Stage
from h2gen.families import Family
from h2gen.families.contract import PassInputs


class Inputs:
    """A forward pass's arguments. Keeps neither embeddings nor ids nor latents alive.

    Args:
        family: of the transformer.
        arguments: of its forward pass, by name.
        own: its blocks that see one kind of tokens only.
        ranks: the processes among which the blocks' tokens are split, if they are.
    """

    def __init__(
        self, family: Family, arguments: Mapping[str, Any], own: Sequence[Stage] = (), ranks: Ranks | None = None
    ) -> None:
        given = family.pass_inputs(arguments)
        latents, text, timestep, image_ids, text_ids, references, *_ = given
        identity = text, image_ids, text_ids, latents if given.shared is None else given.shared
        self._identity = [None if each is None else weakref.ref(each) for each in identity]
        self.pictures: int = latents.shape[0]
        together = family.passes_at_once(arguments, callers)
        #: The passes of true guidance in this one; each row of the batch counts as a picture here.
        self.passes = together if self.pictures % together == 0 else 1
        self._family, self.ranks = family, ranks
        self._controlnet = {name: value for name, value in arguments.items() if name.startswith("controlnet_")}
        #: Whether blocks can run for only some pictures of the batch.
        self.separable = given.texts == self.pictures > 1 and family.can_split(arguments)
        #: What must not change while residuals are kept.
        self.signature = (
            latents.shape, text.shape, latents.dtype, latents.device, None if references is None else references.shape,
            ranks,
        )  # fmt: skip
        self.text_tokens: int = given.text_tokens
        self.image_tokens: int = given.image_tokens
        self.reference_tokens: int = 0 if references is None else references.shape[1]
        self.device: torch.device = latents.device
        #: Whether the transformer returns an object or a tuple; None by default.
        self.return_dict: bool | None = arguments.get("return_dict")
        #: See ``PassInputs``.
        self.grid = given.grid
        #: What an own block of each kind counts as, in blocks of a stage.
        self.parts = parts_of(given) if own else {}
        constants = family.constants(arguments) if own else {}
        #: What the results of own blocks that are the same at every step are computed from.
        self.constants = {
            stage.name: Constants((*constants[stage.name], *map(_changed_forward, stage.blocks)))
            for stage in own
            if stage.name in constants
        }
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


def parts_of(given: PassInputs) -> dict[str, float]:
    """The part of all tokens that each kind has, which is what a block that sees only these counts as."""
    references = 0 if given.references is None else given.references.shape[1]
    tokens: dict[str, int] = {"text": given.text_tokens, "image": given.image_tokens, "references": references}
    return {kind: count / sum(tokens.values()) for kind, count in tokens.items()}


def as_timestep(sigma: torch.Tensor) -> float:
    """The timestep, 0 to 1000, of what the model is given, 0 to 1."""
    return float(sigma.float() * 1000)


def _changed_forward(block: nn.Module) -> Any:
    """What others have put in place of a block's ``forward`` (diffusers' hooks do); None if nothing."""
    forward = block.__dict__.get("forward")
    return getattr(forward, "replaced", forward)  # ours, if another thread's pass is running
