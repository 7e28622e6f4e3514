"""Qwen-Image: one list of double-stream blocks, a text encoder that reads pictures too, and true guidance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from h2gen.errors import CacheError
from h2gen.families.contract import Family, PassInputs
from h2gen.families.defaults import ModelDefaults
from h2gen.families.one_list import OneListFamily
from h2gen.families.prompt_end import PromptEnd, end_of
from h2gen.families.single_file import block_counts
from h2gen.families.token_grid import unpacked
from h2gen.families.unused import NOT_DISTILLED, Unused

if TYPE_CHECKING:
    import torch

QWEN_IMAGE = ModelDefaults(width=1328, height=1328, guidance=0.0, cfg=4.0)
"""Source: the model's own page: 50 steps, ``true_cfg_scale`` 4, 1328x1328 for a square picture."""


class QwenImage(OneListFamily):
    """``QwenImageTransformer2DModel``: Qwen-Image."""

    title = "Qwen-Image"
    transformer = "QwenImageTransformer2DModel"
    tasks: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "QwenImagePipeline": {
            "text": "QwenImagePipeline",
            "image": "QwenImageImg2ImgPipeline",
            "inpaint": "QwenImageInpaintPipeline",
        },
    }
    held_per_token = 14.3
    blocks = "transformer_blocks"
    pads_text = False
    diffusers_caches = frozenset({"FirstBlockCacheConfig", "MagCacheConfig", "TaylorSeerCacheConfig"})
    marks = ("transformer_blocks.0.img_mod.1",)
    per_picture = Family.per_picture | {"encoder_hidden_states_mask"}
    unsplittable = ("controlnet_block_samples", "additional_t_cond")

    def pass_inputs(self, arguments: Mapping[str, Any]) -> PassInputs:
        # There are no position ids. Both passes of a step get the same latents, and all steps of a pass the same text.
        text, shapes = arguments["encoder_hidden_states"], arguments.get("img_shapes")
        grid = tuple(shapes[0][0][1:]) if shapes and len(shapes[0]) == 1 else None
        return PassInputs(arguments["hidden_states"], text, arguments["timestep"], None, text, grid=grid)

    def can_split(self, arguments: Mapping[str, Any]) -> bool:
        attention = {*(arguments.get("attention_kwargs") or ())}
        pictures = len((arguments.get("img_shapes") or [[()]])[0])  # with references, modulation has further rows
        return attention <= {"scale"} and pictures == 1 and super().can_split(arguments)

    def added_between(self, stage: str, blocks: int, arguments: Mapping[str, Any]) -> Sequence[torch.Tensor]:
        if arguments.get("controlnet_block_samples") is not None:
            raise CacheError("H2-Cache does not support ControlNets of Qwen-Image; switch the cache off.")
        return ()

    def file_traits(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
        channels = next((shape[1] for name, shape in shapes.items() if name.endswith("img_in.weight")), None)
        return _traits(block_counts(shapes)[0], channels)

    def config_traits(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        return _traits(config.get("num_layers"), config.get("in_channels"))

    def defaults(self, transformer_config: Mapping[str, Any], model_index: Mapping[str, Any]) -> ModelDefaults:
        return QWEN_IMAGE

    def unused(
        self, pipeline: str, transformer_config: Mapping[str, Any], model_index: Mapping[str, Any]
    ) -> Mapping[str, Unused]:
        return {"guidance": NOT_DISTILLED}

    def published(self, transformer_config: Mapping[str, Any], model_index: Mapping[str, Any]) -> str:
        return "Qwen-Image" if transformer_config.get("num_layers") == 60 else ""

    def encode(self, pipe: Any, prompt: str, max_sequence_length: int) -> dict[str, torch.Tensor]:
        embeddings, mask = pipe.encode_prompt(
            prompt=[prompt], device=pipe._execution_device, max_sequence_length=max_sequence_length
        )
        if mask is None:  # all of it is text; without a mask the pipeline would warn
            mask = embeddings.new_ones(embeddings.shape[:2]).long()
        return {"prompt_embeds": embeddings, "prompt_embeds_mask": mask}

    def unread(self, pipe: Any, prompt: str, max_sequence_length: int) -> PromptEnd:
        """The limit counts what the chat template adds after the prompt, but not what it begins with."""
        wrapped, begin = pipe.prompt_template_encode.format(prompt), pipe.prompt_template_encode_start_idx
        end = end_of(pipe.tokenizer, prompt, max_sequence_length + begin, wrapped)
        return end._replace(needed=end.needed - begin)

    def guidance_arguments(self, pipe: Any, guidance: float, cfg: float) -> dict[str, Any]:
        return {"true_cfg_scale": cfg}

    def decoder_latents(
        self, tokens: torch.Tensor, grid: tuple[int, int], autoencoder: Any, decoder: Any
    ) -> torch.Tensor:
        latents, config = unpacked(tokens, grid), autoencoder.config
        mean, deviation = (
            latents.new_tensor(each).view(1, -1, 1, 1) for each in (config.latents_mean, config.latents_std)
        )
        return latents * deviation + mean

    def example_inputs(self, transformer: Any, image_tokens: int, text_tokens: int) -> dict[str, Any]:
        import torch

        config, weight = transformer.config, transformer.proj_out.weight
        generator = torch.Generator("cpu").manual_seed(0)
        side = max(1, int(image_tokens**0.5))
        shapes = {
            "hidden_states": (1, image_tokens, config.in_channels),
            "encoder_hidden_states": (1, text_tokens, config.joint_attention_dim),
        }
        noise = {name: torch.randn(shape, generator=generator).to(weight) for name, shape in shapes.items()}
        grid = (1, side, image_tokens // side) if image_tokens % side == 0 else (1, 1, image_tokens)
        return {**noise, "img_shapes": [[grid]], "return_dict": False}

    def modulated_input(self, block: Any, arguments: Mapping[str, Any]) -> torch.Tensor:
        attention, _ = block.img_mod(arguments["temb"]).chunk(2, dim=-1)
        modulated: torch.Tensor = block._modulate(block.img_norm1(arguments["hidden_states"]), attention)[0]
        return modulated


def _traits(blocks: int | None, channels: int | None) -> tuple[str, ...]:
    return f"has {blocks} blocks", f"takes {channels} input channels"
