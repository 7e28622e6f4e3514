"""FLUX.1: double-stream blocks, then single-stream blocks with separate text and image; guidance as an input."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from h2gen.families.contract import SAMPLES, Family, PictureInputs
from h2gen.families.defaults import ModelDefaults
from h2gen.families.prompt_end import PromptEnd, end_of
from h2gen.families.tasks import Limits
from h2gen.families.unused import NO_NEGATIVE, NO_TRUE_GUIDANCE, NOT_DISTILLED, Unused

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import nn

DEV = ModelDefaults()
SCHNELL = ModelDefaults(steps=4, guidance=0.0, max_sequence_length=256)
KONTEXT = ModelDefaults(steps=28, guidance=2.5)
WITH_PICTURE = ModelDefaults(guidance=30.0)
"""FLUX.1 Fill and Canny."""
_BY_PIPELINE = {"FluxKontextPipeline": KONTEXT, "FluxFillPipeline": WITH_PICTURE, "FluxControlPipeline": WITH_PICTURE}
_WITHOUT_TRUE_GUIDANCE = (
    "FluxFillPipeline",
    *("FluxControlPipeline", "FluxControlImg2ImgPipeline", "FluxControlInpaintPipeline"),
    *("FluxControlNetImg2ImgPipeline", "FluxControlNetInpaintPipeline"),
)

REDUX = "FluxPriorReduxPipeline"
"""Redux's own small model: a picture becomes text tokens."""

TEACACHE_DEV = (498.651651, -283.781631, 55.8554382, -3.82021401, 0.264230861)
"""TeaCache's published polynomial for FLUX.1 [dev], highest power first: from the input's change to the output's.

Source: arXiv 2411.19108.
"""


class Flux1(Family):
    """``FluxTransformer2DModel``: FLUX.1 [dev], [schnell], Krea and the bundled model."""

    title = "FLUX.1"
    transformer = "FluxTransformer2DModel"
    tasks: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "FluxPipeline": {
            "text": "FluxPipeline",
            "image": "FluxImg2ImgPipeline",
            "inpaint": "FluxInpaintPipeline",
            "controlnet": "FluxControlNetPipeline",
            "controlnet image": "FluxControlNetImg2ImgPipeline",
            "controlnet inpaint": "FluxControlNetInpaintPipeline",
        },
        "FluxKontextPipeline": {
            "text": "FluxKontextPipeline",
            "edit": "FluxKontextPipeline",
            "inpaint": "FluxKontextInpaintPipeline",
        },
        "FluxFillPipeline": {"fill": "FluxFillPipeline"},
        "FluxControlPipeline": {
            "control": "FluxControlPipeline",
            "control image": "FluxControlImg2ImgPipeline",
            "control inpaint": "FluxControlInpaintPipeline",
        },
    }
    with_control_lora: ClassVar[Mapping[str, str]] = {"FluxPipeline": "FluxControlPipeline"}
    limits: ClassVar[Mapping[str, Limits]] = {"FluxKontextInpaintPipeline": Limits(2)}
    held_per_token = 17.5
    splits_tokens = True
    redux = REDUX
    marks = ("double_blocks.0.img_attn.qkv", "transformer_blocks.0.attn.add_q_proj")
    with_pictures: ClassVar[Mapping[int, tuple[str, str]]] = {
        384: ("FLUX.1 Fill", "FluxFillPipeline"),
        128: ("FLUX.1 Canny or Depth", "FluxControlPipeline"),
    }
    diffusers_caches = frozenset({"FirstBlockCacheConfig", "MagCacheConfig", "SeaCacheConfig", "TaylorSeerCacheConfig"})

    def added_between(self, stage: str, blocks: int, arguments: Mapping[str, Any]) -> Sequence[torch.Tensor]:
        return controlnet_samples(stage, blocks, arguments)

    def defaults(self, transformer_config: Mapping[str, Any], model_index: Mapping[str, Any]) -> ModelDefaults:
        if not transformer_config.get("guidance_embeds", True):
            return SCHNELL
        return _BY_PIPELINE.get(str(model_index.get("_class_name")), DEV)

    def unused(
        self, pipeline: str, transformer_config: Mapping[str, Any], model_index: Mapping[str, Any]
    ) -> Mapping[str, Unused]:
        found: dict[str, Unused] = {}
        if transformer_config.get("guidance_embeds") is False:
            found["guidance"] = NOT_DISTILLED
        if pipeline in _WITHOUT_TRUE_GUIDANCE:
            found |= {"cfg": NO_TRUE_GUIDANCE, "negative": NO_NEGATIVE}
        return found

    def published(self, transformer_config: Mapping[str, Any], model_index: Mapping[str, Any]) -> str:
        return "FLUX.1-dev" if paints_as_dev(transformer_config, model_index) else ""

    def encode(self, pipe: Any, prompt: str, max_sequence_length: int) -> dict[str, torch.Tensor]:
        embeddings, pooled, _ = pipe.encode_prompt(
            prompt=[prompt], prompt_2=None, device=pipe._execution_device, max_sequence_length=max_sequence_length
        )
        return {"prompt_embeds": embeddings, "pooled_prompt_embeds": pooled}

    def unread(self, pipe: Any, prompt: str, max_sequence_length: int) -> PromptEnd:
        """T5's limit, since its embeddings are the text tokens. CLIP reads 77 tokens, but yields only one vector."""
        return end_of(pipe.tokenizer_2, prompt, max_sequence_length)

    def guidance_arguments(self, pipe: Any, guidance: float, cfg: float) -> dict[str, Any]:
        return {"guidance_scale": guidance, **({"true_cfg_scale": cfg} if cfg > 1 else {})}

    def picture_arguments(self, pipe: Any, task: str, given: PictureInputs) -> dict[str, Any]:
        if not type(pipe).__name__.startswith("FluxKontext"):
            return super().picture_arguments(pipe, task, given)
        # Its autoencoder draws nothing, and it takes one picture for the whole batch.
        arguments = super().picture_arguments(pipe, task, given._replace(together=1))
        arguments["max_area"] = given.size[0] * given.size[1]  # or it would scale the size to a megapixel
        if given.pictures:
            arguments["image"] = given.pictures[0]
        if task == "inpaint":
            arguments["_auto_resize"] = False  # or the result would have another size
            if len(given.pictures) > 1:
                arguments["image_reference"] = given.pictures[1]
        return arguments

    def control_arguments(
        self,
        task: str,
        pictures: Sequence[Image.Image],
        nets: Sequence[tuple[float, int | None]] = (),
    ) -> dict[str, Any]:
        if not nets:
            return {"control_image": pictures[0]}
        scales, modes = [scale for scale, _ in nets], [mode for _, mode in nets]
        if len(nets) > 1:
            return {
                "control_image": [*pictures],
                "controlnet_conditioning_scale": scales,
                "control_mode": modes,
            }
        mode = {} if modes[0] is None else {"control_mode": modes[0]}
        return {"control_image": pictures[0], "controlnet_conditioning_scale": scales[0], **mode}

    def with_redux(self, encoded: Mapping[str, torch.Tensor], tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        import torch

        text = encoded["prompt_embeds"]
        return {**encoded, "prompt_embeds": torch.cat([text, tokens.expand(len(text), -1, -1)], dim=1)}

    def example_inputs(self, transformer: Any, image_tokens: int, text_tokens: int) -> dict[str, Any]:
        import torch

        inputs = super().example_inputs(transformer, image_tokens, text_tokens)
        pooled = torch.randn(1, transformer.config.pooled_projection_dim, generator=torch.Generator().manual_seed(1))
        inputs["pooled_projections"] = pooled.to(inputs["hidden_states"])
        if transformer.config.guidance_embeds:
            inputs["guidance"] = inputs["img_ids"].new_full((1,), 3.5)
        return inputs

    def modulated_input(self, block: Any, arguments: Mapping[str, Any]) -> torch.Tensor:
        modulated: torch.Tensor = block.norm1(arguments["hidden_states"], emb=arguments["temb"])[0]
        return modulated

    def teacache_polynomial(self, transformer: Any) -> tuple[float, ...]:
        return TEACACHE_DEV if is_dev(transformer.config) else super().teacache_polynomial(transformer)


def is_dev(config: Mapping[str, Any]) -> bool:
    """Whether a configuration has the blocks of FLUX.1 [dev] and distilled guidance, as [dev] and its relatives do."""
    blocks = config.get("num_layers"), config.get("num_single_layers")
    return blocks == (19, 38) and config.get("guidance_embeds") is True


def paints_as_dev(config: Mapping[str, Any], index: Mapping[str, Any]) -> bool:
    """Whether a model is one like [dev] that makes pictures from text: not Kontext, Fill, Depth or Canny.

    Args:
        config: of its transformer.
        index: its ``model_index.json``; empty if that is not known.
    """
    from_text = index.get("_class_name", "FluxPipeline") == "FluxPipeline"
    return is_dev(config) and config.get("in_channels") not in Flux1.with_pictures and from_text


def random_transformer(device: torch.device, dtype: torch.dtype, width: int = 1024, doubles: int = 5) -> nn.Module:
    """A transformer of ``66 * width**2 * doubles`` random weights, with two single-stream blocks per double-stream one.

    Args:
        device, dtype: of the weights.
        width: of the token streams; a multiple of 128.
        doubles: double-stream blocks.
    """
    import torch
    from diffusers import FluxTransformer2DModel
    from torch import nn

    torch.manual_seed(0)
    model: nn.Module = FluxTransformer2DModel(
        num_layers=doubles,
        num_single_layers=2 * doubles,
        num_attention_heads=width // 128,
        joint_attention_dim=512,
        pooled_projection_dim=256,
        guidance_embeds=True,
    )
    # Not the model's own ``to``, which warns about casting trained weights.
    return nn.Module.to(model, device=device, dtype=dtype).eval()


def controlnet_samples(stage: str, blocks: int, arguments: Mapping[str, Any]) -> Sequence[torch.Tensor]:
    """What a ControlNet adds after each block of a stage but the last.

    Source: ``FluxTransformer2DModel.forward``.
    """
    samples = arguments.get(SAMPLES[stage != "structure"])
    if samples is None:
        return ()
    between = range(blocks - 1)
    if stage == "structure" and arguments.get("controlnet_blocks_repeat"):
        return [samples[index % len(samples)] for index in between]
    interval = math.ceil(blocks / len(samples))
    return [samples[index // interval] for index in between]
