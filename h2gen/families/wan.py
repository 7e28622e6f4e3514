"""Wan 2.1: one list of blocks over the video alone, which read the text by cross-attention; true guidance only.

The first third of the blocks is the structure stage, the rest the detail stage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from h2gen.families.defaults import ModelDefaults
from h2gen.families.one_list import OneListFamily
from h2gen.families.prompt_end import PromptEnd, end_of
from h2gen.families.single_file import Kind, block_counts
from h2gen.families.unused import NOT_DISTILLED, Unused
from h2gen.families.video import VideoFamily, example_latents, takes_latents

if TYPE_CHECKING:
    import torch

WAN = ModelDefaults(width=832, height=480, steps=50, guidance=0.0, cfg=5.0, frames=81, fps=16.0)
"""Those of diffusers' pipeline, and the frames per second of its example."""
_WITH_PICTURE = 36
"""Input channels of an image-to-video model: the latents, those of the picture, and a mask of the frames it fills."""


class Wan(OneListFamily, VideoFamily):
    """``WanTransformer3DModel``: Wan 2.1, text to video."""

    title = "Wan 2.1"
    transformer = "WanTransformer3DModel"
    tasks: ClassVar[Mapping[str, Mapping[str, str]]] = {"WanPipeline": {"text": "WanPipeline"}}
    held_per_token = 14.5
    scheduler: ClassVar[Mapping[str, Any]] = {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True}
    diffusers_caches = frozenset({"FirstBlockCacheConfig", "MagCacheConfig", "TaylorSeerCacheConfig"})
    blocks = "blocks"
    lora_layers: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "blocks": (*(f"{kind}_attn.{layer}" for kind in ("self", "cross") for layer in "qkvo"), "ffn.0", "ffn.2")
    }
    told_by_name: ClassVar[tuple[Kind, ...]] = (
        Kind(
            "by its name one of the two transformers of Wan 2.2",
            (
                r"(?i:(?<![a-z])(high|low)[ _.-]?noise)",
                # "HIGH" alone only before the precision or the ending: a "low_vram" says something else.
                r"(?i:wan[ _.-]?2[ _.-]?2.*(?<![a-z])(high|low)[ _.-]+(fp|bf|f\d|i?q\d|int\d|safetensors|gguf))",
            ),
            "h2gen runs models with one, such as wan and wan-14b",
        ),
    )
    marks = ("blocks.0.self_attn.norm_q.", "blocks.0.attn1.norm_q.")

    def block_streams(self, stage: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[torch.Tensor, ...]:
        return (kwargs["hidden_states"] if "hidden_states" in kwargs else args[0],)

    def file_traits(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
        patches = shapes.get("patch_embedding.weight", ())
        return _traits(block_counts(shapes)[0], *patches[:2])

    def config_traits(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        heads, size = config.get("num_attention_heads"), config.get("attention_head_dim")
        width = heads * size if isinstance(heads, int) and isinstance(size, int) else None
        return _traits(config.get("num_layers"), width, config.get("in_channels"))

    def defaults(self, transformer_config: Mapping[str, Any], model_index: Mapping[str, Any]) -> ModelDefaults:
        return WAN

    def unused(
        self, pipeline: str, transformer_config: Mapping[str, Any], model_index: Mapping[str, Any]
    ) -> Mapping[str, Unused]:
        return {"guidance": NOT_DISTILLED}

    def published(self, transformer_config: Mapping[str, Any], model_index: Mapping[str, Any]) -> str:
        return "Wan2.1-T2V-1.3B" if transformer_config.get("num_layers") == 30 else ""

    def encode(self, pipe: Any, prompt: str, max_sequence_length: int) -> dict[str, torch.Tensor]:
        embeddings, _ = pipe.encode_prompt(
            prompt=[prompt],
            do_classifier_free_guidance=False,
            device=pipe._execution_device,
            max_sequence_length=max_sequence_length,
        )
        return {"prompt_embeds": embeddings}

    def unread(self, pipe: Any, prompt: str, max_sequence_length: int) -> PromptEnd:
        return end_of(pipe.tokenizer, prompt, max_sequence_length)

    def guidance_arguments(self, pipe: Any, guidance: float, cfg: float) -> dict[str, Any]:
        return {"guidance_scale": cfg}

    def decoder_latents(
        self, tokens: torch.Tensor, grid: tuple[int, int], autoencoder: Any, decoder: Any
    ) -> torch.Tensor:
        config = autoencoder.config
        mean, deviation = (
            tokens.new_tensor(each).view(1, -1, 1, 1) for each in (config.latents_mean, config.latents_std)
        )
        return tokens * deviation + mean

    def example_inputs(self, transformer: Any, image_tokens: int, text_tokens: int) -> dict[str, Any]:
        return example_latents(transformer, image_tokens, text_tokens, transformer.config.text_dim)

    def modulated_input(self, block: Any, arguments: Mapping[str, Any]) -> torch.Tensor:
        hidden, modulation = arguments["hidden_states"], arguments["temb"]
        shift, scale = (block.scale_shift_table + modulation.float()).chunk(6, dim=1)[:2]
        modulated: torch.Tensor = (block.norm1(hidden.float()) * (1 + scale) + shift).type_as(hidden)
        return modulated


def _traits(blocks: int | None = None, width: int | None = None, channels: int | None = None) -> tuple[str, ...]:
    return f"has {blocks} blocks", f"is {width} channels wide", takes_latents(channels, _WITH_PICTURE)
