"""HunyuanVideo: double-stream blocks, then single-stream blocks with separate video and text; guidance as an input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from h2gen.families.defaults import ModelDefaults
from h2gen.families.prompt_end import PromptEnd, end_of
from h2gen.families.single_file import block_counts, takes_guidance, traits
from h2gen.families.unused import NOT_DISTILLED, Unused
from h2gen.families.video import VideoFamily, example_latents, takes_latents

if TYPE_CHECKING:
    import torch

HUNYUAN_VIDEO = ModelDefaults(
    width=1280, height=720, steps=50, guidance=6.0, max_sequence_length=256, frames=129, fps=24.0
)
"""Those of diffusers' pipeline; 24 frames per second are those of the model's authors."""
_REFINER = "token_refiner."
_WITH_PICTURE = 33
"""Input channels of an image-to-video model: the latents, those of the picture, and a mask of the frames it fills."""


class HunyuanVideo(VideoFamily):
    """``HunyuanVideoTransformer3DModel``: HunyuanVideo. Its blocks take and return the video before the text."""

    title = "HunyuanVideo"
    transformer = "HunyuanVideoTransformer3DModel"
    tasks: ClassVar[Mapping[str, Mapping[str, str]]] = {"HunyuanVideoPipeline": {"text": "HunyuanVideoPipeline"}}
    held_per_token = 17.5
    diffusers_caches = frozenset({"FirstBlockCacheConfig", "MagCacheConfig", "SeaCacheConfig", "TaylorSeerCacheConfig"})
    marks = ("txt_in.individual_token_refiner.", "context_embedder.token_refiner.")
    lora_layers: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "double_blocks": tuple(
            f"{stream}_{layer}"
            for stream in ("img", "txt")
            for layer in ("attn_qkv", "attn_proj", "mlp.fc1", "mlp.fc2", "mod.linear")
        ),
        "single_blocks": ("linear1", "linear2", "modulation.linear"),
    }
    lora_words: ClassVar[Mapping[str, str]] = {
        "_attn.": "_attn_",
        "_mlp.0.": "_mlp.fc1.",
        "_mlp.2.": "_mlp.fc2.",
        "mod.lin.": "mod.linear.",
        "modulation.lin.": "modulation.linear.",
        ".diff_b": ".lora_B.bias",
    }
    """ComfyUI names HunyuanVideo's layers like FLUX.1's."""
    per_picture = VideoFamily.per_picture | {"attention_mask", "token_replace_emb"}

    def output_streams(self, stage: str, output: Any) -> tuple[torch.Tensor, ...]:
        video, text = output
        return text, video

    def block_output(self, stage: str, streams: tuple[torch.Tensor, ...]) -> Any:
        text, video = streams
        return video, text

    def file_traits(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
        counts = block_counts(name for name in shapes if _REFINER not in name)
        return _traits(*counts, takes_guidance(shapes), _channels(shapes))

    def config_traits(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        keys = ("num_layers", "num_single_layers", "guidance_embeds", "in_channels")
        return _traits(*(config.get(key) for key in keys))

    def defaults(self, transformer_config: Mapping[str, Any], model_index: Mapping[str, Any]) -> ModelDefaults:
        return HUNYUAN_VIDEO

    def unused(
        self, pipeline: str, transformer_config: Mapping[str, Any], model_index: Mapping[str, Any]
    ) -> Mapping[str, Unused]:
        return {"guidance": NOT_DISTILLED} if transformer_config.get("guidance_embeds") is False else {}

    def published(self, transformer_config: Mapping[str, Any], model_index: Mapping[str, Any]) -> str:
        blocks = transformer_config.get("num_layers"), transformer_config.get("num_single_layers")
        return "HunyuanVideo" if blocks == (20, 40) else ""

    def encode(self, pipe: Any, prompt: str, max_sequence_length: int) -> dict[str, torch.Tensor]:
        embeddings, pooled, mask = pipe.encode_prompt(
            prompt=[prompt], device=pipe._execution_device, max_sequence_length=max_sequence_length
        )
        return {"prompt_embeds": embeddings, "pooled_prompt_embeds": pooled, "prompt_attention_mask": mask}

    def unread(self, pipe: Any, prompt: str, max_sequence_length: int) -> PromptEnd:
        """Llama's limit, since its embeddings are the text tokens. It leaves out most of the template around the
        prompt; the pipeline cuts that off again."""
        from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE

        before = int(DEFAULT_PROMPT_TEMPLATE["crop_start"])
        wrapped = DEFAULT_PROMPT_TEMPLATE["template"].format(prompt)
        text, needed = end_of(pipe.tokenizer, prompt, max_sequence_length + before, wrapped)
        return PromptEnd(text, needed - before)

    def guidance_arguments(self, pipe: Any, guidance: float, cfg: float) -> dict[str, Any]:
        return {"guidance_scale": guidance, **({"true_cfg_scale": cfg} if cfg > 1 else {})}

    def example_inputs(self, transformer: Any, image_tokens: int, text_tokens: int) -> dict[str, Any]:
        import torch

        config = transformer.config
        inputs = example_latents(transformer, image_tokens, text_tokens, config.text_embed_dim)
        latents = inputs["hidden_states"]
        pooled = torch.randn(1, config.pooled_projection_dim, generator=torch.Generator().manual_seed(1))
        inputs["pooled_projections"] = pooled.to(latents)
        inputs["encoder_attention_mask"] = latents.new_ones(1, text_tokens)
        if config.guidance_embeds:
            inputs["guidance"] = latents.new_full((1,), 6000.0)
        return inputs

    def modulated_input(self, block: Any, arguments: Mapping[str, Any]) -> torch.Tensor:
        modulated: torch.Tensor = block.norm1(arguments["hidden_states"], emb=arguments["temb"])[0]
        return modulated


def _channels(shapes: Mapping[str, Sequence[int]]) -> int | None:
    """The latent channels that the patches are made of."""
    return next((shapes[name][1] for name in ("x_embedder.proj.weight", "img_in.proj.weight") if name in shapes), None)


def _traits(double: int | None, single: int | None, guidance: bool | None, channels: int | None) -> tuple[str, ...]:
    of_blocks, of_guidance, _ = traits(double, single, guidance, channels)  # its channels are of latents, not of tokens
    return of_blocks, of_guidance, takes_latents(channels, _WITH_PICTURE)
