"""FLUX.1: double-stream blocks, then single-stream blocks that keep text and image apart; guidance as an input."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from h2gen.families.contract import Family

if TYPE_CHECKING:
    import torch
    from torch import nn

    from h2gen.models.defaults import ModelDefaults


class Flux1(Family):
    """``FluxTransformer2DModel``: FLUX.1 [dev], [schnell], Krea and the bundled model."""

    name = "flux1"
    transformer = "FluxTransformer2DModel"
    pipelines = ("FluxPipeline",)

    def block_lists(self, transformer: nn.Module) -> tuple[Sequence[nn.Module], Sequence[nn.Module]]:
        return list(transformer.transformer_blocks), list(transformer.single_transformer_blocks)  # type: ignore[arg-type]

    def block_streams(self, stage: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[torch.Tensor, ...]:
        image = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        text = kwargs["encoder_hidden_states"] if "encoder_hidden_states" in kwargs else args[1]
        return text, image

    def block_output(self, stage: str, streams: tuple[torch.Tensor, ...]) -> Any:
        return streams

    def added_between(self, stage: str, blocks: int, arguments: Mapping[str, Any]) -> Sequence[torch.Tensor]:
        """Source: ``FluxTransformer2DModel.forward``."""
        name = "controlnet_block_samples" if stage == "structure" else "controlnet_single_block_samples"
        samples = arguments.get(name)
        if samples is None:
            return ()
        between = range(blocks - 1)
        if stage == "structure" and arguments.get("controlnet_blocks_repeat"):
            return [samples[index % len(samples)] for index in between]
        interval = math.ceil(blocks / len(samples))
        return [samples[index // interval] for index in between]

    def recognizes(self, tensors: set[str]) -> bool:
        marks = ("double_blocks.0.img_attn.qkv", "transformer_blocks.0.attn.add_q_proj")
        return any(mark in name for name in tensors for mark in marks)

    def defaults(self, transformer_config: Mapping[str, Any], model_index: Mapping[str, Any]) -> ModelDefaults:
        from h2gen.models.defaults import DEV, SCHNELL

        return DEV if transformer_config.get("guidance_embeds", True) else SCHNELL

    def encode(self, pipe: Any, prompt: str, max_sequence_length: int) -> dict[str, torch.Tensor]:
        embeddings, pooled, _ = pipe.encode_prompt(
            prompt=[prompt], prompt_2=None, device=pipe._execution_device, max_sequence_length=max_sequence_length
        )
        return {"prompt_embeds": embeddings, "pooled_prompt_embeds": pooled}

    def guidance_arguments(self, pipe: Any, guidance: float, cfg: float) -> dict[str, Any]:
        return {"guidance_scale": guidance, **({"true_cfg_scale": cfg} if cfg > 1 else {})}
