"""What families of video transformers share: latents of frames, rows and columns, and timesteps from 1000 to 0."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from h2gen.families.contract import Family, PassInputs

if TYPE_CHECKING:
    import torch


class VideoFamily(Family):
    """A transformer that takes a video's latents, ``(B, C, frames, height, width)``, and makes a token of 1 x 2 x 2 of
    them. It returns their velocity in the same shape."""

    makes_video = True
    frame_step = 4
    shifts_by_size = False
    unsplittable = ()

    def pass_inputs(self, arguments: Mapping[str, Any]) -> PassInputs:
        latents, text = arguments["hidden_states"], arguments["encoder_hidden_states"]
        frames, height, width = latents.shape[2:]
        # There are no position ids. A pipeline that gives a guidance makes a new one for each call.
        guidance = arguments.get("guidance")
        return PassInputs(
            latents,
            text,
            arguments["timestep"].flatten()[:1] / 1000,
            None,
            text if guidance is None else guidance,
            grid=(frames, height // 2, width // 2),
        )

    def can_split(self, arguments: Mapping[str, Any]) -> bool:
        return {*(arguments.get("attention_kwargs") or ())} <= {"scale"}

    def at(self, inputs: Mapping[str, Any], timestep: torch.Tensor) -> dict[str, Any]:
        return super().at(inputs, 1000 * timestep)

    def first_frame(self, latents: torch.Tensor) -> torch.Tensor:
        return latents[:, :, 0]

    def decoder_latents(
        self, tokens: torch.Tensor, grid: tuple[int, int], autoencoder: Any, decoder: Any
    ) -> torch.Tensor:
        latents: torch.Tensor = tokens / autoencoder.config.scaling_factor  # they are not packed into tokens
        return latents

    def added_between(self, stage: str, blocks: int, arguments: Mapping[str, Any]) -> Sequence[torch.Tensor]:
        return ()


def takes_latents(channels: int | None, with_picture: int) -> str:
    """The number of input channels, in words; a model that also takes the latents of a picture is image-to-video."""
    return f"takes {channels} latent channels{' (image-to-video)' if channels == with_picture else ''}"


def example_latents(transformer: Any, image_tokens: int, text_tokens: int, text_width: int) -> dict[str, Any]:
    """Random latents of one frame and text for one forward pass, on the transformer's device and in its dtype."""
    import torch

    config, weight = transformer.config, transformer.proj_out.weight
    generator = torch.Generator("cpu").manual_seed(0)
    rows = next(side for side in range(math.isqrt(image_tokens), 0, -1) if image_tokens % side == 0)
    shapes = {
        "hidden_states": (1, config.in_channels, 1, 2 * rows, 2 * (image_tokens // rows)),
        "encoder_hidden_states": (1, text_tokens, text_width),
    }
    noise = {name: torch.randn(shape, generator=generator).to(weight) for name, shape in shapes.items()}
    return {**noise, "return_dict": False}
